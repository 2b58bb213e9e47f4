// From feature to feature without loading a page anew: the neighbours are fetched while nothing else is to be done, and one
// replaces the main part of the page when it is asked for. Wherever that fails, and from a file, the link is followed as usual.
import { announce } from "./dom.js";

const STEP_LINKS = 'a[data-go="previous"], a[data-go="following"]';
const fetched = new Map();
let enhanceFeature = () => {};
let shownFeature = location.href;
let wantedFeature = null;

/** Switches are set when the page is shown; only whole windows are another answer of the server. */
function withoutChoices(address) {
  const plain = new URL(address);
  for (const [name, value] of [...plain.searchParams]) {
    if (["breaks", "bands", "scale"].includes(name) || (name === "context" && value !== "whole")) plain.searchParams.delete(name);
  }
  plain.hash = "";
  return plain.href;
}

function fetchPage(shown) {
  const address = withoutChoices(shown);
  if (!fetched.has(address)) {
    const page = fetch(address, { credentials: "same-origin" }).then((answer) => {
      if (!answer.ok) throw new Error(`The server answered ${answer.status}.`);
      return answer.text();
    });
    page.catch(() => fetched.delete(address));
    fetched.set(address, page);
  }
  return fetched.get(address);
}

/** Have the neighbours ready, and nothing else. */
function prepareSteps() {
  fetched.clear();
  const prepare = () => document.querySelectorAll(STEP_LINKS).forEach((link) => fetchPage(link.href).catch(() => {}));
  if ("requestIdleCallback" in window) requestIdleCallback(prepare, { timeout: 500 });
  else setTimeout(prepare, 50);
}

async function showFeature(address, isBack) {
  wantedFeature = address;
  let page;
  try {
    page = new DOMParser().parseFromString(await fetchPage(address), "text/html");
  } catch {
    location.assign(address);
    return;
  }
  if (wantedFeature !== address) return; // another was asked for meanwhile
  const main = page.querySelector("main");
  if (!main?.querySelector(".feature")) {
    location.assign(address);
    return;
  }
  const focused = document.activeElement?.closest?.(STEP_LINKS)?.dataset.go;
  document.getElementById("main").replaceChildren(...main.childNodes);
  document.title = page.title;
  if (!isBack) history.pushState(null, "", address);
  shownFeature = location.href;
  window.scrollTo({ top: 0, behavior: "instant" });
  enhanceFeature();
  const target = (focused && document.querySelector(`a[data-go="${focused}"]`)) || document.getElementById("main");
  target.focus({ preventScroll: true });
  announce(page.title);
  prepareSteps();
}

/** Listen. `enhance` is called whenever a feature was put into the page. */
export function startSteps(enhance) {
  if (location.protocol === "file:") return;
  enhanceFeature = enhance;
  document.addEventListener("click", (event) => {
    const link = event.target instanceof Element ? event.target.closest(STEP_LINKS) : null;
    if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey || event.defaultPrevented) return;
    event.preventDefault();
    showFeature(link.href, false);
  });
  window.addEventListener("popstate", () => {
    const [before] = shownFeature.split("#");
    if (location.href.split("#")[0] !== before) showFeature(location.href, true);
  });
  prepareSteps();
}
