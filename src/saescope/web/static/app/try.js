// The page for trying a text: the text in tokens, and the strongest features of the whole or of one token.
import { announce, h, island, visible } from "./dom.js";
import { decimal, percent, whole } from "./numbers.js";
import { readState, writeState } from "./state.js";
import { drawTokens, featureAddress, readText } from "./try_reading.js";

const TRY_STATE = { text: "", dense: false };
const LONGEST_IN_ADDRESS = 2000; // characters: longer addresses are cut off on their way
const PER_TOKEN = 12;
const FIRST_LISTED = 20;

/** `<sae-try-text>`, around the form and the places for the result. */
export class SaeTryText extends HTMLElement {
  connectedCallback() {
    const data = island("try");
    if (!data || this.form) return;
    this.name = data.name;
    this.analysis = data.analysis;
    this.form = this.querySelector("form");
    this.area = this.querySelector("textarea");
    this.hides = this.querySelector("#try-dense");
    const state = readState(TRY_STATE);
    this.hides.checked = !state.dense;
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.read();
    });
    this.area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        this.read();
      }
    });
    this.hides.addEventListener("change", () => {
      this.keep();
      this.draw();
    });
    this.part("more").addEventListener("click", () => {
      this.lists = Infinity;
      this.draw();
      this.part("list").children[FIRST_LISTED]?.querySelector("a").focus();
    });
    if (this.area.value) this.read();
  }

  disconnectedCallback() {
    this.request?.abort();
  }

  part(name) {
    return this.querySelector(`[data-${name}]`);
  }

  keep() {
    const text = this.area.value;
    writeState({ text: text.length <= LONGEST_IN_ADDRESS ? text : "", dense: !this.hides.checked }, TRY_STATE);
  }

  /** What goes on, or what went wrong. */
  tell(words, isWrong = false) {
    const place = this.part("state");
    place.textContent = words;
    place.classList.toggle("warn", isWrong);
    if (isWrong) announce(words);
  }

  async ask(more) {
    this.request?.abort();
    const request = new AbortController();
    this.request = request;
    this.setAttribute("aria-busy", "true");
    try {
      const asked = { text: this.text, analysis: this.analysis, ...more };
      return await readText(this.name, asked, (words) => request === this.request && this.tell(words), request.signal);
    } catch (error) {
      if (error.name !== "AbortError") this.tell(error.message, true);
      return null;
    } finally {
      if (request === this.request) this.removeAttribute("aria-busy");
    }
  }

  async read() {
    this.text = this.area.value;
    this.keep();
    const reading = await this.ask({ num_per_token: PER_TOKEN });
    if (!reading) return;
    this.reading = reading;
    this.token = null;
    this.shown = null;
    this.lists = FIRST_LISTED;
    this.draw();
    const strongest = this.listed()[0];
    const first = strongest ? `the strongest feature is ${strongest.index}, ${this.labelOf(strongest.index)}` : null;
    announce(`Read ${whole(reading.num_tokens)} tokens; ${first ?? "no feature is shown"}.`);
  }

  /** Colour the text by one feature, or again by the strongest ones. */
  async show(index) {
    if (this.shown?.index === index) {
      this.shown = null;
      this.draw();
      return;
    }
    const reading = await this.ask({ feature: index });
    if (!reading) return;
    this.shown = { index, values: reading.pieces.map((piece) => piece.activation) };
    this.draw();
    announce(`The text is coloured by feature ${index}.`);
  }

  isHidden(index) {
    return this.hides.checked && Boolean(this.reading.named[index]?.is_dense);
  }

  labelOf(index) {
    return this.reading.named[index]?.label ?? "unlabelled";
  }

  /** The features that the list shows: `index`, `activation`, and of the whole text `num_tokens`. */
  listed() {
    if (this.token === null) return this.reading.features.filter(({ index }) => !this.isHidden(index));
    const features = this.reading.pieces[this.token].features;
    return features.filter(([index]) => !this.isHidden(index)).map(([index, activation]) => ({ index, activation }));
  }

  draw() {
    if (!this.reading) return;
    this.part("result").hidden = false;
    this.drawText();
    this.drawList();
  }

  drawText() {
    const { pieces } = this.reading;
    const first = (piece) => piece.features.find(([index]) => !this.isHidden(index));
    const { shown } = this;
    const values = shown ? shown.values : pieces.map((piece) => first(piece)?.[1] ?? 0);
    const most = shown ? this.reading.named[shown.index]?.max_activation : 0;
    const sizes = values.map(Math.abs).filter((size) => size > 0);
    const strongest = most || sizes.reduce((so_far, size) => Math.max(so_far, size), 0);
    const weakest = shown ? 0 : sizes.reduce((so_far, size) => Math.min(so_far, size), strongest);
    const at = new Map(pieces.map((piece, place) => [piece, place]));
    drawTokens(this.part("tokens"), pieces, {
      valueOf: (piece) => values[at.get(piece)],
      tipOf: (piece) => {
        const value = values[at.get(piece)];
        if (piece.is_special) return "a special token, which is not read";
        if (!value) return shown ? `feature ${shown.index}: 0` : "no feature is shown";
        const index = shown ? shown.index : first(piece)[0];
        return `feature ${index}: ${decimal(value)}\n${this.labelOf(index)}`;
      },
      strongest,
      weakest,
      chosen: this.token,
      choose: (place) => {
        this.token = this.token === place ? null : place;
        this.lists = FIRST_LISTED;
        this.draw();
        announce(this.token === null ? "The list shows the whole text." : "The list shows the features of this token.");
      },
    });
    const reach = `from ${decimal(weakest)} to ${decimal(strongest)}`;
    this.part("legend").textContent = shown
      ? `Coloured by feature ${shown.index}, against ${most ? `its maximum, ${decimal(most)}` : "its strongest here"}.`
      : `${whole(this.reading.num_tokens)} tokens, each coloured by the activation of its strongest feature, ${reach}. `
        + "Choose a token to see its features.";
  }

  drawList() {
    const features = this.listed();
    const total = this.token === null ? this.reading.features.length : this.reading.pieces[this.token].features.length;
    const title = this.part("title");
    title.replaceChildren(this.token === null ? "Strongest in the text" : "Strongest at ");
    if (this.token !== null) title.append(h("span", { class: "token" }, visible(this.reading.pieces[this.token].text)));
    const hidden = total - features.length;
    const left = hidden ? `${hidden === 1 ? "One dense feature is" : `${whole(hidden)} dense features are`} hidden. ` : "";
    const none = total ? "" : "No feature fires here.";
    const back = this.token === null ? "" : " Choose the token again for the whole text.";
    this.part("hidden").textContent = `${left}${none}${back}`.trim();
    const strongest = Math.abs(features[0]?.activation ?? 1);
    const rows = features.slice(0, this.lists).map((feature) => this.row(feature, strongest));
    this.part("list").replaceChildren(...rows);
    const more = features.length - rows.length;
    this.part("more").hidden = more === 0;
    this.part("more").textContent = `Show ${whole(more)} more`;
  }

  row({ index, activation, num_tokens }, strongest) {
    const { density, max_activation } = this.reading.named[index] ?? {};
    const address = featureAddress(this.name, index, this.analysis);
    const facts = [
      max_activation ? `${percent(Math.abs(activation) / max_activation)} of its maximum` : null,
      num_tokens === undefined ? null : `${whole(num_tokens)} ${num_tokens === 1 ? "token" : "tokens"}`,
      density === undefined ? null : `density ${percent(density)}`,
    ];
    const isShown = this.shown?.index === index;
    return h(
      "li",
      { "data-feature": index, style: { "--w": `${((100 * Math.abs(activation)) / strongest).toFixed(1)}%` } },
      h(
        "span",
        { class: "who" },
        h("a", { class: "index", href: address }, index),
        h("a", { class: "label", href: address }, visible(this.labelOf(index))),
      ),
      h(
        "span",
        { class: "numbers" },
        h("b", { title: String(activation) }, decimal(activation)),
        facts.filter(Boolean).map((fact) => ` · ${fact}`),
      ),
      h(
        "button",
        {
          type: "button",
          "aria-pressed": isShown ? "true" : "false",
          "aria-label": `Colour the text by feature ${index}`,
          onclick: () => this.show(index),
        },
        "colour",
      ),
    );
  }
}
