// The box on a feature's page: one text, coloured by this feature on the scale of its page.
import { announce } from "./dom.js";
import { decimal, percent, whole } from "./numbers.js";
import { drawTokens, readText } from "./try_reading.js";

/** `<sae-try data-name data-feature data-max>`, around a form and the places for the result. */
export class SaeTry extends HTMLElement {
  connectedCallback() {
    const form = this.querySelector("form");
    if (!form || this.form) return;
    this.form = form;
    this.area = this.querySelector("textarea");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.read();
    });
    this.area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        this.read();
      }
    });
  }

  disconnectedCallback() {
    this.request?.abort();
  }

  async read() {
    this.request?.abort();
    const request = new AbortController();
    this.request = request;
    const state = this.querySelector("[data-state]");
    const tell = (words) => {
      if (request === this.request) state.textContent = words;
    };
    const asked = { text: this.area.value, feature: Number(this.dataset.feature), analysis: this.dataset.analysis ?? null };
    try {
      this.draw(await readText(this.dataset.name, asked, tell, request.signal));
    } catch (error) {
      if (error.name === "AbortError") return;
      tell(error.message);
      announce(error.message);
    }
  }

  draw(reading) {
    const strongest = Number(this.dataset.max);
    const peak = reading.pieces.reduce((best, piece) => (Math.abs(piece.activation) > Math.abs(best.activation) ? piece : best));
    const number = reading.pieces.filter((piece) => piece.activation).length;
    const share = strongest > 0 ? `, ${percent(Math.abs(peak.activation) / strongest)} of its maximum` : "";
    const most = `most on “${peak.text.trim() || peak.text}” with ${decimal(peak.activation)}${share}`;
    const said = peak.activation
      ? `Fires on ${whole(number)} of ${whole(reading.pieces.length)} pieces; ${most}.`
      : `Does not fire on these ${whole(reading.num_tokens)} tokens.`;
    this.querySelector("[data-said]").textContent = said;
    this.querySelector("[data-result]").hidden = false;
    drawTokens(this.querySelector("[data-tokens]"), reading.pieces, {
      valueOf: (piece) => piece.activation,
      tipOf: (piece) => (piece.is_special ? "a special token, which is not read" : String(piece.activation)),
      strongest: strongest > 0 ? strongest : Math.abs(peak.activation),
    });
    announce(said);
  }
}
