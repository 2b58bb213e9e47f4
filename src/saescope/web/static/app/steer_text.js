// A text that grows while it is written, each piece with the numbers of its token.
import { h, shade, visible } from "./dom.js";
import { decimal } from "./numbers.js";

const FULL_KL = 5; // nats at which a token has its full colour

/** One of the two sides. */
export class SteerText {
  constructor(place) {
    this.place = place;
    this.begin("");
  }

  /** Forget what was written; the prompt stands in front. */
  begin(prompt) {
    this.text = "";
    this.numTokens = 0;
    this.held = []; // numbers of tokens that have shown nothing yet: parts of a character
    this.place.replaceChildren(h("span", { class: "prompt" }, visible(prompt)));
  }

  /** One more token: its text is all that was written so far. */
  add({ text, log_probability, kl, log_probability_plain }) {
    this.numTokens += 1;
    this.held.push({ log_probability, kl, log_probability_plain });
    const more = text.slice(this.text.length);
    if (!more) return;
    this.text = text;
    const strongest = this.held.reduce((most, each) => Math.max(most, each.kl ?? 0), 0);
    const isSteered = this.held.some((each) => each.kl !== undefined);
    this.place.append(
      h(
        "span",
        {
          class: isSteered && strongest > 0 ? "on" : null,
          "data-tip": this.held.map((each) => tokenInWords(each)).join("\n"),
          style: isSteered ? { "--a": shade(strongest, FULL_KL).toFixed(3) } : {},
        },
        visible(more),
      ),
    );
    this.held = [];
  }
}

function tokenInWords({ log_probability, kl, log_probability_plain }) {
  const chance = (value) => (value === null ? "none" : decimal(Math.exp(value), 3));
  if (kl === undefined) return `probability ${chance(log_probability)}`;
  const far = kl === null ? "KL beyond all numbers" : `KL ${decimal(kl)} nats`;
  return `${far}; probability ${chance(log_probability)}, plain ${chance(log_probability_plain)}`;
}
