// The page of a list: the form, the address, the keys and the table, over rows of a server or of the page itself.
import { announce, h, island } from "./dom.js";
import { ListForm, asQuery, isNarrowed, listDefaults } from "./filters.js";
import { LiveRows, LocalRows } from "./rows.js";
import { RowWindow } from "./table.js";
import { bind } from "./keys.js";
import { query as queryString, send } from "./api.js";
import { readState, writeState } from "./state.js";
import { whole } from "./numbers.js";

/** `<sae-features>` around the form and the table, which are there without it too. */
export class SaeFeatures extends HTMLElement {
  connectedCallback() {
    if (this.data) return;
    this.data = island("features");
    this.local = this.data.api ? null : (globalThis.SAESCOPE_ROWS ?? []);
    this.defaults = listDefaults(Object.keys(this.data.numbers));
    this.state = readState(this.defaults);
    this.count = this.querySelector(".count");
    this.form = new ListForm(this.querySelector("form"), this.data.numbers, (values) => this.#change(values));
    this.form.fill(this.state);
    this.window = new RowWindow(this.querySelector(".view"), {
      moved: () => this.#remember(),
      failed: (error) => this.#tell(error.message, true),
    });
    this.classList.add("ready");
    this.querySelector("nav.pages").hidden = true;
    this.#listen();
    this.#keys();
    this.#begin();
  }

  /** The rows that the server drew are the start of the list, unless the page begins further on. */
  async #begin() {
    const drawn = [...this.querySelectorAll("tbody.rows > tr")];
    const options = { at: this.state.at, current: this.state.row };
    if (this.local) {
      await this.#open(options);
      return;
    }
    for (const button of this.querySelectorAll("button.star")) button.disabled = false;
    const source = new LiveRows(this.data.api, this.#query());
    const indices = drawn.map((row) => Number(row.dataset.index));
    if (this.data.is_start) {
      source.seed(this.data.total, indices);
    } else {
      const at = await source.placeOf(indices[0]).catch(() => 0);
      options.at = Math.max(0, at);
      source.seed(this.data.total, []);
    }
    const start = this.data.is_start ? 0 : options.at;
    options.kept = new Map(drawn.map((row, place) => [start + place, row]));
    this.#forgetPlace();
    if (this.querySelector(".problem")) return;
    this.#count(source);
    this.window.show(source, this.#look(), options);
    this.window.focusCurrent();
  }

  /** The address names the first place in view instead of a cursor. */
  #forgetPlace() {
    const given = new URLSearchParams(location.search);
    if (!given.has("after") && !given.has("add")) return;
    given.delete("after");
    given.delete("add");
    history.replaceState(history.state, "", `${location.pathname}${queryString(Object.fromEntries(given))}`);
  }

  #query() {
    return asQuery(this.state, this.data.analysis);
  }

  #look() {
    const { sort, mode, search } = this.state;
    const shown = [...this.data.shown];
    if (mode === "meaning" && search) shown.unshift("similarity");
    else if (sort !== "index" && !shown.includes(sort)) shown.unshift(sort);
    return {
      columns: shown.map((key) => [key, this.data.numbers[key]?.[1] ?? "decimal"]),
      sort: mode === "meaning" && search ? "similarity" : sort,
      hasStar: !this.local,
      address: (index) => this.data.feature_url.replace("{index}", index),
    };
  }

  /** Show what the state asks for. */
  async #open(options = {}) {
    this.flight?.abort();
    const flight = (this.flight = new AbortController());
    this.classList.add("busy");
    let source;
    try {
      if (this.local) {
        source = new LocalRows(this.local, this.state);
      } else {
        source = new LiveRows(this.data.api, this.#query());
        await source.open(flight.signal);
      }
    } catch (error) {
      if (error.name !== "AbortError") this.#tell(error.message, true);
      return;
    } finally {
      if (flight === this.flight) this.classList.remove("busy");
    }
    if (flight.signal.aborted) return;
    this.#heads();
    this.#count(source);
    this.window.show(source, this.#look(), options);
    this.window.focusCurrent();
  }

  #change(values) {
    const next = { ...this.state, ...values };
    if (JSON.stringify(next) === JSON.stringify(this.state)) return;
    this.state = { ...next, at: 0, row: -1 };
    writeState(this.state, this.defaults);
    this.#open();
  }

  #count(source) {
    const { total } = source;
    const narrowed = isNarrowed(this.state);
    const words = `${whole(total)} ${total === 1 ? "feature" : "features"}`;
    this.#tell(narrowed ? `${words} match${total === 1 ? "es" : ""}` : words);
    this.querySelector(".clear").hidden = !narrowed;
    const random = this.querySelector("a.random");
    if (random) random.href = this.data.random_url + queryString({ ...this.#changed(), at: "", row: "" });
    this.querySelector(".nothing")?.remove();
    if (!total) this.querySelector(".view").append(h("p", { class: "nothing" }, "No feature matches."));
  }

  /** The state as it stands in an address: only what differs from the defaults. */
  #changed() {
    const query = Object.entries(this.#query()).filter(([name, value]) => value !== this.defaults[name]);
    return Object.fromEntries(query);
  }

  #tell(words, isProblem = false) {
    this.count.replaceChildren(isProblem ? h("span", { class: "problem" }, words) : words);
  }

  /** The heads of the columns: which there are, and by which the list is sorted. */
  #heads() {
    const look = this.#look();
    const row = this.querySelector("thead tr");
    const focused = document.activeElement?.dataset?.sort;
    for (const head of [...row.querySelectorAll("th.n")]) head.remove();
    for (const [key] of look.columns) {
      const words = this.data.numbers[key]?.[0] ?? "Nearness";
      const link = h("a", { class: "sort", "data-sort": key, href: `?sort=${key}` }, words);
      row.append(h("th", { scope: "col", class: `n c-${key}` }, key === "similarity" ? words : link));
    }
    for (const link of row.querySelectorAll("a.sort")) {
      const head = link.closest("th");
      const isSorted = link.dataset.sort === look.sort;
      head.classList.toggle("sorted", isSorted);
      if (isSorted) head.setAttribute("aria-sort", this.state.dir === "desc" ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
      const { sort } = link.dataset;
      link.setAttribute("href", queryString({ ...this.#changed(), sort, dir: this.#turned(sort) }));
    }
    if (focused && document.activeElement === document.body) row.querySelector(`[data-sort="${focused}"]`)?.focus();
  }

  #turned(key) {
    if (key === this.state.sort) return this.state.dir === "desc" ? "asc" : "desc";
    return key === "index" ? "asc" : "desc";
  }

  #remember() {
    clearTimeout(this.later);
    this.later = setTimeout(() => this.#write(), 150);
  }

  #write() {
    if (!this.window.source) return;
    this.state.at = this.window.at;
    this.state.row = this.window.current;
    writeState(this.state, this.defaults);
  }

  #listen() {
    addEventListener("pagehide", () => this.#write());
    this.addEventListener("click", (event) => {
      const sort = event.target.closest("a.sort");
      const isPlain = !event.ctrlKey && !event.metaKey && !event.shiftKey && event.button === 0;
      if (sort && isPlain) {
        event.preventDefault();
        this.form.fill({ sort: sort.dataset.sort, dir: this.#turned(sort.dataset.sort) });
        this.#change(this.form.values());
      }
      if (event.target.closest("a.clear") && isPlain) {
        event.preventDefault();
        const { sort: by, dir } = this.state;
        this.form.fill({ ...this.defaults, sort: by, dir });
        this.#change({ ...this.defaults, sort: by, dir });
      }
      const star = event.target.closest("button.star");
      const row = event.target.closest("tbody.rows > tr");
      if (row) this.window.select(this.window.placeOf(row), { focus: false });
      if (star) this.#bookmark(row);
      else if (row && isPlain && !event.target.closest("a, button") && !String(getSelection())) this.#follow(row);
      if (event.target.closest("a")) this.#write();
    });
    this.window.table.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !event.target.matches("tbody.rows > tr")) return;
      const moves = { PageDown: this.window.numVisible, PageUp: -this.window.numVisible, Home: -Infinity, End: Infinity };
      if (event.key in moves) this.window.move(moves[event.key]);
      else if (event.key === "Enter") this.#follow(event.target);
      else return;
      event.preventDefault();
    });
  }

  #keys() {
    bind(["j", "ArrowDown"], "next feature of the list", () => this.window.move(1));
    bind(["k", "ArrowUp"], "feature before it", () => this.window.move(-1));
    bind("o", "open the feature (Enter does too)", () => this.#follow(this.#row()));
    if (!this.local) bind("m", "set or take away its bookmark", () => this.#bookmark(this.#row()));
    bind("r", "a feature by lot", () => this.#random());
    bind("g h", "all dictionaries", () => location.assign(this.data.home_url));
  }

  #row() {
    return this.window.node(this.window.current);
  }

  #follow(row) {
    const link = row?.querySelector("th a");
    if (!link) return;
    this.#write();
    location.assign(link.href);
  }

  async #random() {
    this.#write();
    if (!this.local) {
      location.assign(this.querySelector("a.random").href);
      return;
    }
    const row = await this.window.source.draw();
    if (row !== null) location.assign(this.#look().address(row));
  }

  async #bookmark(row) {
    const button = row?.querySelector("button.star");
    if (!button) return;
    const on = button.getAttribute("aria-pressed") !== "true";
    const index = Number(row.dataset.index);
    const show = (value) => {
      button.setAttribute("aria-pressed", String(value));
      button.textContent = value ? "★" : "☆";
      const known = this.window.source.row(this.window.placeOf(row));
      if (known) known.is_bookmarked = value;
    };
    show(on);
    try {
      await send("PUT", `${this.data.api}/f/${index}/bookmark`, { on });
      announce(on ? `Feature ${index} is bookmarked.` : `Feature ${index} has no bookmark any more.`);
    } catch (error) {
      show(!on);
      this.#tell(error.message, true);
    }
  }
}
