// The features that are to be changed: a row for each with its strength, and a search to add one.
import { get } from "./api.js";
import { announce, h, visible } from "./dom.js";
import { decimal } from "./numbers.js";
import { featureAddress } from "./try_reading.js";

const SLIDER = 10; // the slider's ends; the number goes further
const FIRST_STRENGTH = 2;
// denser features are named by number: they mean little, and are in the way of those that do
const SEARCH = { limit: 8, sort: "lift", max_density: 0.1 };
const TYPING_MS = 250;

/** Keeps `chosen`: index, label, max_activation, strength, kind. `tell` is called when one is added or removed. */
export class SteerFeatures {
  constructor(root, about, analysis, tell) {
    this.root = root;
    this.about = about;
    this.analysis = analysis;
    this.tell = tell;
    this.rows = root.querySelector("[data-rows]");
    this.found = root.querySelector("[data-found]");
    this.state = root.querySelector("[data-found-state]");
    this.input = root.querySelector("#steer-add");
    this.path = `/api/d/${encodeURIComponent(about.dictionary)}`;
    this.chosen = [];
    this.rows.replaceChildren();
    for (const feature of about.features) this.add(feature, { quietly: true });
    this.input.addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.search(), TYPING_MS);
    });
    this.input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
      event.preventDefault(); // the form is sent by its button
      clearTimeout(this.timer);
      this.search({ andAdd: true });
    });
  }

  async search({ andAdd = false } = {}) {
    this.request?.abort();
    const request = new AbortController();
    this.request = request;
    const words = this.input.value.trim();
    if (!words) {
      this.offer([]);
      return;
    }
    try {
      const isNumber = /^\d{1,15}$/.test(words);
      const answer = isNumber
        ? await get(`${this.path}/steer`, { f: words, analysis: this.analysis }, request.signal)
        : await get(`${this.path}/features`, { ...SEARCH, search: words, analysis: this.analysis }, request.signal);
      if (request !== this.request) return;
      const features = answer.features.map((feature) => ({
        index: feature.index,
        label: isNumber ? feature.label : (feature.label?.text ?? feature.explanation?.text ?? null),
        max_activation: feature.max_activation,
      }));
      this.offer(features, features.length ? "" : "No feature that fires on under 10\u00a0% of tokens has these words.");
      if (andAdd && features.length) this.add(features[0]);
    } catch (error) {
      if (error.name !== "AbortError" && request === this.request) this.offer([], error.message);
    }
  }

  offer(features, words = "") {
    this.state.textContent = words;
    this.found.replaceChildren(
      ...features.map((feature) =>
        h(
          "li",
          {},
          h(
            "button",
            { type: "button", disabled: !(feature.max_activation > 0), onclick: () => this.add(feature) },
            h("span", { class: "index" }, feature.index),
            visible(feature.label ?? "unlabelled"),
            feature.max_activation > 0 ? null : " (never fired)",
          ),
        ),
      ),
    );
    if (features.length) announce(`${features.length} features found.`);
    else if (words) announce(words);
  }

  add({ index, label, max_activation, strength = FIRST_STRENGTH, kind = "add" }, { quietly = false } = {}) {
    const problem = this.chosen.some((each) => each.index === index)
      ? `Feature ${index} is there already.`
      : this.chosen.length >= this.about.limits.features
        ? `At most ${this.about.limits.features} features are changed at once.`
        : max_activation > 0
          ? null
          : `Feature ${index} never fired where it was analysed, so that it has no maximum to count a strength in.`;
    if (problem) {
      this.state.textContent = problem;
      announce(problem);
      return;
    }
    const feature = { index, label, max_activation, strength, kind };
    this.chosen.push(feature);
    const row = this.row(feature);
    this.rows.append(row);
    if (quietly) return;
    this.input.value = "";
    this.offer([]);
    this.tell();
    this.root.keep();
    row.querySelector("input[type=number]").focus();
    announce(`Feature ${index} added.`);
  }

  row(feature) {
    const { index } = feature;
    const most = this.about.limits.strength;
    const unit = h("span", { class: "quiet" });
    const said = () => {
      const activation = decimal(feature.strength * feature.max_activation);
      unit.textContent = `times its maximum activation, ${decimal(feature.max_activation)}: ${activation}`;
    };
    const name = `Strength of feature ${index}`;
    const slider = h("input", { type: "range", min: -SLIDER, max: SLIDER, step: 0.1, "aria-label": `${name}, slider` });
    const number = h("input", { type: "number", min: -most, max: most, step: "any", required: true, "aria-label": name });
    const set = (value, by) => {
      if (!Number.isFinite(value) || Math.abs(value) > most) return;
      feature.strength = value;
      if (by !== number) number.value = value;
      if (by !== slider) slider.value = value;
      said();
    };
    slider.addEventListener("input", () => set(slider.valueAsNumber, slider));
    number.addEventListener("input", () => set(number.valueAsNumber, number));
    set(feature.strength, null);
    const kinds = h(
      "select",
      { "aria-label": `What is done with feature ${index}`, onchange: (event) => { feature.kind = event.target.value; } },
      h("option", { value: "add", selected: feature.kind === "add" }, "add"),
      h("option", { value: "clamp", selected: feature.kind === "clamp" }, "clamp to"),
    );
    const row = h(
      "li",
      { "data-feature": index },
      h(
        "span",
        { class: "who" },
        h("a", { class: "index", href: featureAddress(this.about.dictionary, index, this.analysis) }, index),
        h("span", { class: "label" }, visible(feature.label ?? "unlabelled")),
        h(
          "button",
          { type: "button", "aria-label": `Remove feature ${index}`, onclick: () => this.remove(feature, row) },
          "Remove",
        ),
      ),
      h("span", { class: "strength" }, kinds, slider, number, unit),
    );
    return row;
  }

  remove(feature, row) {
    this.chosen = this.chosen.filter((each) => each !== feature);
    row.remove();
    this.tell();
    this.root.keep();
    this.input.focus();
    announce(`Feature ${feature.index} removed.`);
  }
}
