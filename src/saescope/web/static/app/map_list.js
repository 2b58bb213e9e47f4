// The features that were chosen on the map, as text with links, and the labels of features that are pointed at.
import { get } from "./api.js";
import { announce, h, visible } from "./dom.js";
import { whole } from "./numbers.js";

const MAP_LIST_STEP = 100; // features that the list grows by

/** Labels by index, asked for a few at a time and kept. */
export class MapLabels {
  constructor(path, analysis) {
    this.path = path;
    this.analysis = analysis;
    this.known = new Map();
  }

  /** Labels of some features as a Map: null where there is none. */
  async of(features, signal = undefined) {
    const missing = features.filter((feature) => !this.known.has(feature));
    for (let start = 0; start < missing.length; start += MAP_LIST_STEP) {
      const index = missing.slice(start, start + MAP_LIST_STEP);
      const answer = await get(this.path, { index, analysis: this.analysis }, signal);
      for (const feature of index) this.known.set(feature, null);
      for (const row of answer.features) this.known.set(row.index, row.label?.text ?? null);
    }
    return new Map(features.map((feature) => [feature, this.known.get(feature)]));
  }
}

/** The list beside the map. `addressOf` gives the address of a feature's page. */
export class MapList {
  constructor(element, labels, addressOf) {
    this.element = element;
    this.labels = labels;
    this.addressOf = addressOf;
    this.features = [];
    this.more = element.querySelector("[data-more]");
    this.more.addEventListener("click", () => this.grow());
  }

  /** Show features in this order. `what` says where they come from, `address` leads to the same as a list. */
  show(features, what, { address = null, words = "Open as list" } = {}) {
    this.features = features;
    this.shown = 0;
    this.element.hidden = false;
    this.element.querySelector("ol").replaceChildren();
    const count = `${whole(features.length)} ${features.length === 1 ? "feature" : "features"} ${what}`;
    this.element.querySelector("[data-count]").textContent = features.length ? count : `No feature ${what}`;
    this.more.hidden = true;
    const link = this.element.querySelector("[data-as-list]");
    link.hidden = address === null || features.length === 0;
    if (address !== null) link.href = address;
    link.textContent = words;
    announce(this.element.querySelector("[data-count]").textContent);
    return this.grow();
  }

  async grow() {
    const features = this.features;
    const next = features.slice(this.shown, this.shown + MAP_LIST_STEP);
    const rows = next.map((feature) => {
      const label = h("span", { class: "label" }, "…");
      const link = h("a", { href: this.addressOf(feature) }, h("span", { class: "index" }, feature), label);
      return [feature, label, h("li", {}, link)];
    });
    this.element.querySelector("ol").append(...rows.map(([, , row]) => row));
    this.shown += next.length;
    const left = features.length - this.shown;
    this.more.hidden = left === 0;
    this.more.textContent = `Show ${whole(Math.min(left, MAP_LIST_STEP))} more of ${whole(left)}`;
    let known = new Map();
    try {
      known = await this.labels.of(next);
    } catch (error) {
      if (features === this.features) announce(error.message);
    }
    for (const [feature, label] of rows) {
      const text = known.get(feature);
      label.replaceChildren(text ? visible(text) : "unlabelled");
      label.classList.toggle("unlabelled", !text);
    }
  }
}
