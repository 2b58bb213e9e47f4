// The form above a list and the address of the page: both say the same, whichever was changed.
import { h } from "./dom.js";

/** What a list is asked for when nothing is said, for these keys of numbers. */
export function listDefaults(keys) {
  const bounds = keys.flatMap((key) => [`min_${key}`, `max_${key}`]);
  return {
    sort: "density", dir: "desc", search: "", mode: "words", tag: "", bookmarked: false,
    ...Object.fromEntries(bounds.map((name) => [name, ""])),
    at: 0, row: -1,
  };
}

/** Whether a state leaves features out. */
export function isNarrowed(state) {
  return Object.entries(state).some(([name, value]) => /^(min_|max_|search$|tag$|bookmarked$)/.test(name) && Boolean(value));
}

/** The state as a server understands it. */
export function asQuery(state, analysis) {
  const { at, row, bookmarked, ...query } = state;
  return { ...query, bookmarked: bookmarked ? 1 : "", mode: state.mode === "words" ? "" : state.mode, analysis };
}

/** The form. Tells `changed(state)` what is wanted, at once or, while somebody types, after a moment. */
export class ListForm {
  constructor(form, numbers, changed) {
    this.form = form;
    this.numbers = numbers;
    this.changed = changed;
    form.querySelector(".apply").hidden = true;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#tell(0);
    });
    form.addEventListener("input", (event) => {
      if (event.target.name === "add") this.#add(event.target);
      else this.#tell(event.target.matches("[type=search], [type=number]") ? 180 : 0);
    });
  }

  #tell(wait) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.#count();
      this.changed(this.values());
    }, wait);
  }

  #count() {
    const summary = this.form.querySelector(".ranges summary");
    const isSet = (field) => [...field.elements].some((input) => input.value !== "");
    const number = [...this.form.querySelectorAll("fieldset")].filter(isSet).length;
    summary.replaceChildren("Ranges", ...(number ? [" ", h("span", { class: "chip" }, number)] : []));
  }

  /** What the form says. Fields that it lacks are left out. */
  values() {
    const values = {};
    for (const element of this.form.elements) {
      if (!element.name || element.name === "add" || element.name === "analysis") continue;
      values[element.name] = element.type === "checkbox" ? element.checked : element.value;
    }
    return values;
  }

  /** Let the form say what a state says. */
  fill(state) {
    for (const [name, value] of Object.entries(state)) {
      if (/^(min|max)_/.test(name) && value !== "" && !this.form.elements[name]) this.#field(name.slice(4));
      const element = this.form.elements[name];
      if (!element) continue;
      if (element.type === "checkbox") element.checked = Boolean(value);
      else if (element.value !== String(value)) element.value = value;
    }
    this.#count();
  }

  #add(select) {
    const key = select.value;
    if (!key) return;
    this.#field(key).querySelector("input").focus();
    select.value = "";
  }

  #field(key) {
    const [words, kind] = this.numbers[key];
    const input = (end, said) =>
      h("input", { type: "number", step: "any", name: `${end}_${key}`, placeholder: said, "aria-label": `${words}, ${said}` });
    const legend = h("legend", {}, words + (kind === "percent" ? " (share of one)" : ""));
    const field = h("fieldset", { "data-key": key }, legend, input("min", "at least"), " ", input("max", "at most"));
    this.form.querySelector(".bounds > .field").before(field);
    this.form.querySelector(`#add option[value="${key}"]`)?.remove();
    return field;
  }
}
