// The switches of a feature's page: style sheets act on them; here they go into the address and into links to other features.
import { announce } from "./dom.js";
import { readState, writeState } from "./state.js";

const STANDARD_CHOICES = { context: "16", breaks: false, bands: "quantile", scale: "log" };

function choicesNow() {
  const chosen = { ...STANDARD_CHOICES };
  for (const name of ["context", "bands", "scale"]) {
    const input = document.querySelector(`input[name="${name}"]:checked`);
    if (input) chosen[name] = input.value;
  }
  chosen.breaks = Boolean(document.getElementById("breaks")?.checked);
  return chosen;
}

function keepChoices() {
  const chosen = choicesNow();
  writeState(chosen, STANDARD_CHOICES);
  for (const link of document.querySelectorAll("a[data-keeps]")) {
    const address = new URL(link.href);
    for (const [name, standard] of Object.entries(STANDARD_CHOICES)) {
      address.searchParams.delete(name);
      if (chosen[name] !== standard) address.searchParams.set(name, chosen[name] === true ? "1" : chosen[name]);
    }
    link.href = address.href;
  }
}

/** The next context length, after the last the first. */
export function cycleContext() {
  const inputs = [...document.querySelectorAll('input[name="context"]')];
  const next = inputs[(inputs.findIndex((input) => input.checked) + 1) % inputs.length];
  if (!next) return;
  next.checked = true;
  keepChoices();
  announce(next.value === "whole" ? "Whole windows" : `${next.value} tokens on either side of the peak`);
}

/** Line breaks shown, or not. */
export function toggleBreaks() {
  const box = document.getElementById("breaks");
  if (!box) return;
  box.checked = !box.checked;
  keepChoices();
  announce(box.checked ? "Line breaks are shown" : "Line breaks are not shown");
}

/** Set the switches as the address says (a server did already, a file can not), and listen. */
export function startChoices() {
  const chosen = readState(STANDARD_CHOICES);
  for (const name of ["context", "bands", "scale"]) {
    const input = document.getElementById(`${name}-${chosen[name]}`);
    if (input) input.checked = true;
  }
  const box = document.getElementById("breaks");
  if (box) box.checked = chosen.breaks;
  keepChoices();
  document.querySelector(".feature").addEventListener("change", (event) => {
    if (event.target.name in STANDARD_CHOICES || event.target.id === "breaks") keepChoices();
  });
  for (const group of document.querySelectorAll(".segments")) {
    group.addEventListener("keydown", (event) => {
      if (event.key.startsWith("Arrow")) event.stopPropagation(); // the radio buttons' own keys
    });
  }
}
