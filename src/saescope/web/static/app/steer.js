// The page for steering: a form that a link fills, and two texts that are written side by side.
import { stream } from "./api.js";
import { announce, island } from "./dom.js";
import { decimal, whole } from "./numbers.js";
import { writeState } from "./state.js";
import { SteerFeatures } from "./steer_features.js";
import { SteerText } from "./steer_text.js";

const STEER_STATE = { f: [], s: [], kind: [], prompt: "", tokens: 40, temperature: 1, seed: 0 };
const LONGEST_PROMPT_IN_ADDRESS = 2000; // characters

/** `<sae-steer>`, around the form and the places for the texts. */
export class SaeSteer extends HTMLElement {
  connectedCallback() {
    const about = island("steer");
    if (!about || this.form) return;
    this.about = about;
    this.analysis = new URLSearchParams(location.search).get("analysis");
    this.form = this.querySelector("form");
    this.plain = new SteerText(this.part("plain"));
    this.steered = new SteerText(this.part("steered"));
    this.features = new SteerFeatures(this, about, this.analysis, () => this.changed());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    this.form.addEventListener("change", () => this.keep());
    this.form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.form.requestSubmit();
    });
    this.part("stop").addEventListener("click", () => this.stop());
    this.changed();
  }

  disconnectedCallback() {
    this.request?.abort();
  }

  part(name) {
    return this.querySelector(`[data-${name}]`);
  }

  changed() {
    this.querySelector("button[type=submit]").disabled = this.features.chosen.length === 0;
    this.part("none").hidden = this.features.chosen.length > 0;
  }

  value(name) {
    return this.form.elements.namedItem(name).value;
  }

  /** Put the form into the address. */
  keep() {
    const { chosen } = this.features;
    const prompt = this.value("prompt");
    const state = {
      f: chosen.map((each) => String(each.index)),
      s: chosen.map((each) => String(each.strength)),
      kind: chosen.map((each) => each.kind),
      prompt: prompt.length <= LONGEST_PROMPT_IN_ADDRESS ? prompt : "",
      tokens: Number(this.value("tokens")),
      temperature: Number(this.value("temperature")),
      seed: Number(this.value("seed")),
    };
    writeState(state, STEER_STATE);
  }

  tell(words, isWrong = false) {
    const place = this.part("state");
    place.textContent = words;
    place.classList.toggle("warn", isWrong);
    if (isWrong) announce(words);
  }

  stop() {
    if (!this.request) return;
    this.request.abort();
    this.tell("Stopped.");
    announce("Stopped.");
  }

  async run() {
    this.request?.abort();
    const request = new AbortController();
    this.request = request;
    this.keep();
    const prompt = this.value("prompt");
    const asked = {
      prompt,
      changes: this.features.chosen.map(({ index, strength, kind }) => ({ feature: index, strength, kind })),
      max_new_tokens: Number(this.value("tokens")),
      temperature: Number(this.value("temperature")),
      seed: Number(this.value("seed")),
      analysis: this.analysis,
    };
    this.part("sides").hidden = false;
    for (const side of [this.plain, this.steered]) side.begin(prompt);
    for (const name of ["numbers", "plain-numbers", "steered-numbers"]) this.part(name).textContent = "";
    this.part("stop").disabled = false;
    this.tell("Asking the model …");
    announce("Writing.");
    try {
      const path = `/api/d/${encodeURIComponent(this.about.dictionary)}/steer`;
      await stream(path, asked, (event) => request === this.request && this.take(event), request.signal);
    } catch (error) {
      if (error.name !== "AbortError" && request === this.request) this.tell(error.message, true);
    } finally {
      if (request === this.request) {
        this.request = null;
        this.part("stop").disabled = true;
      }
    }
  }

  take(event) {
    if (event.error) this.tell(event.error.message, true);
    else if (event.state) this.tell(event.state.words);
    else if (event.done) this.finish(event.done);
    else {
      this.tell(`Writing, ${whole(this.steered.numTokens + 1)} tokens so far.`);
      if (event.plain) this.plain.add(event.plain);
      if (event.steered) this.steered.add(event.steered);
    }
  }

  finish({ kl_per_token, perplexity_plain, perplexity_steered, num_tokens }) {
    this.tell("");
    const inWords = (value) => (value === null ? "beyond all numbers" : decimal(value));
    const [plain, steered] = [inWords(perplexity_plain), inWords(perplexity_steered)];
    const ratio = perplexity_plain && perplexity_steered ? perplexity_steered / perplexity_plain : null;
    const times = ratio === null ? "" : `, ${decimal(ratio, 3)} times as much`;
    const moved =
      kl_per_token === null
        ? "The change moved the model further than numbers can say."
        : `The change moved the model by ${decimal(kl_per_token)} nats a token: that is KL(steered‖plain), the mean over the `
          + `${whole(num_tokens)} steered tokens; 0 would be no change at all.`;
    this.part("numbers").textContent =
      `${moved} To the plain model its own text has a perplexity of ${plain}, and the steered one ${steered}${times}: `
      + "the higher, the less natural it finds a text.";
    this.part("plain-numbers").textContent = `perplexity ${plain}`;
    this.part("steered-numbers").textContent = `perplexity ${steered} · KL ${inWords(kl_per_token)} nats a token`;
    announce(`Written: ${whole(num_tokens)} steered tokens. ${moved}`);
  }
}
