// A text that is read: asking for it, with words on what it waits for, and its tokens as a list that keys walk along.
import { get, query, send } from "./api.js";
import { h, shade, visible } from "./dom.js";

/** Ask for the features of a text. While it takes long, `tell` gets words on what it waits for, and at the end "". */
export async function readText(name, asked, tell, signal) {
  const path = `/api/d/${encodeURIComponent(name)}`;
  let isWaiting = true;
  const look = async () => {
    try {
      const { state, words, num_waiting } = await get(`${path}/live`, {}, signal);
      const others = num_waiting > 1 ? ` ${num_waiting} texts wait for the model.` : "";
      if (isWaiting) tell(state === "ready" ? `Reading …${others}` : words);
    } catch {
      // the request itself says what is wrong
    }
    if (isWaiting) timer = setTimeout(look, 1000);
  };
  let timer = setTimeout(look, 500);
  try {
    return await send("POST", `${path}/activations`, asked, signal);
  } finally {
    isWaiting = false;
    clearTimeout(timer);
    tell("");
  }
}

/** The address of a feature's page. */
export function featureAddress(name, index, analysis) {
  return `/d/${encodeURIComponent(name)}/f/${index}${query({ analysis })}`;
}

/**
 * Draw pieces as options of a listbox: one of them is in the order of the tab key, arrows move along.
 * `valueOf(piece)` gives what colours it, `tipOf(piece)` what it says; `choose(at)` is called on Enter, space and click.
 * Colours go from 0, or with `weakest` in even steps from there, to `strongest`.
 */
export function drawTokens(place, pieces, { valueOf, tipOf, strongest, weakest = 0, chosen = null, choose = null }) {
  const colour = (value) => {
    if (!weakest) return shade(value, strongest);
    return 0.06 + 0.84 * ((Math.abs(value) - weakest) / (strongest - weakest || 1)); // all are strong: tell them apart
  };
  const tokens = pieces.map((piece, at) => {
    const value = valueOf(piece);
    const kind = piece.is_special ? "special" : value ? `on${value < 0 ? " neg" : ""}` : null;
    return h(
      "span",
      {
        role: "option",
        class: kind,
        tabindex: at === (chosen ?? 0) ? "0" : "-1",
        "aria-selected": at === chosen ? "true" : "false",
        "data-at": at,
        "aria-label": piece.text.trim() ? null : blankInWords(piece.text),
        "data-tip": tipOf(piece),
        style: value ? { "--a": colour(value).toFixed(3) } : {},
      },
      visible(piece.text),
    );
  });
  const had = place.contains(document.activeElement) ? document.activeElement.dataset.at : null;
  place.replaceChildren(...tokens);
  if (had !== null && had !== undefined) moveToToken(place, Number(had));
  place.onclick = (event) => {
    const token = event.target.closest("[role=option]");
    if (!token || !getSelection().isCollapsed) return; // somebody marks text to copy it
    moveToToken(place, Number(token.dataset.at));
    if (choose) choose(Number(token.dataset.at));
  };
  place.onkeydown = (event) => {
    const token = event.target.closest("[role=option]");
    if (!token || event.ctrlKey || event.metaKey || event.altKey) return;
    const at = Number(token.dataset.at);
    const last = pieces.length - 1;
    const to = { ArrowLeft: at - 1, ArrowUp: at - 1, ArrowRight: at + 1, ArrowDown: at + 1, Home: 0, End: last }[event.key];
    if (to !== undefined) moveToToken(place, Math.max(0, Math.min(last, to)));
    else if (choose && (event.key === "Enter" || event.key === " ")) choose(at);
    else return;
    event.preventDefault();
  };
}

/** A piece of blanks as it is read out. */
function blankInWords(text) {
  const names = { " ": "space", "\n": "line end", "\t": "tab" };
  const found = [...text.replaceAll("\r\n", "\n")].map((sign) => names[sign] ?? "blank");
  const runs = found.filter((name, at) => name !== found[at - 1]);
  return runs.length === found.length ? runs.join(", ") : `${runs.join(", ")}: ${found.length} signs`;
}

function moveToToken(place, at) {
  for (const token of place.querySelectorAll("[tabindex='0']")) token.tabIndex = -1;
  const token = place.querySelector(`[data-at="${at}"]`);
  if (!token) return;
  token.tabIndex = 0;
  token.focus();
}
