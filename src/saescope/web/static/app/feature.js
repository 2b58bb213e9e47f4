// A feature's page: its keys, its switches, its bookmark. Without scripts it can be read all the same.
import { send } from "./api.js";
import { announce } from "./dom.js";
import { startCopying } from "./copying.js";
import { cycleContext, startChoices, toggleBreaks } from "./feature_choices.js";
import { startSteps } from "./feature_steps.js";
import { goToGroup, startTokens } from "./feature_tokens.js";
import { bind } from "./keys.js";

function goByKey(keys, words, place) {
  bind(keys, words, () => document.querySelector(`[data-go="${place}"]`)?.click());
}

function startBookmark() {
  const button = document.querySelector("[data-bookmark]");
  const place = document.querySelector("sae-remarks")?.getAttribute("api");
  button?.addEventListener("click", async () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.disabled = true;
    try {
      await send("PUT", `${place}/bookmark`, { on });
      button.setAttribute("aria-pressed", String(on));
      announce(on ? "Bookmarked" : "Bookmark removed");
    } catch (error) {
      announce(error.message);
      button.title = error.message;
    }
    button.disabled = false;
  });
}

/** What each feature needs that is put into the page. */
function startParts() {
  startChoices();
  startTokens();
  startCopying();
  startBookmark();
}

/** Begin, where the page is a feature's. */
export function startFeature() {
  if (!document.querySelector(".feature")) return;
  startParts();
  startSteps(startParts);
  goByKey(["j", "ArrowRight"], "next feature", "following");
  goByKey(["k", "ArrowLeft"], "previous feature", "previous");
  bind("[", "previous group of examples", () => goToGroup(-1));
  bind("]", "next group of examples", () => goToGroup(1));
  bind("c", "more or less context", cycleContext);
  bind("b", "line breaks", toggleBreaks);
  goByKey("g f", "list of features", "list");
  if (!document.querySelector("sae-remarks[api]")) return; // a frame, or a file
  bind("m", "bookmark", () => document.querySelector("[data-bookmark]").click());
  bind("n", "write a note", () => document.querySelector("sae-remarks").writeNote());
  bind("t", "try a text", () => document.querySelector("sae-try textarea")?.focus());
  goByKey("s", "steer", "steer");
  goByKey("r", "random feature", "random");
}
