// Walking through the examples of a page by keyboard: firing tokens inside an example, examples, groups.

const FIRING_TOKENS = ".on, .peak";

function firingTokensOf(item) {
  return [...item.querySelectorAll(FIRING_TOKENS)].filter((token) => token.offsetParent !== null);
}

/** Let the token have the focus; of its example, it alone can then be reached with the tab key. */
function focusToken(token) {
  for (const other of token.closest("li").querySelectorAll("[tabindex]")) other.removeAttribute("tabindex");
  token.tabIndex = 0;
  token.focus();
}

function walkTokens(event) {
  const token = event.target.closest?.(FIRING_TOKENS);
  const item = token?.closest(".examples > li");
  if (!item || event.ctrlKey || event.metaKey || event.altKey) return;
  const firing = firingTokensOf(item);
  const at = firing.indexOf(token);
  const places = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: firing.length - 1 };
  if (event.key in places) {
    event.preventDefault();
    const next = firing[places[event.key]];
    if (next) focusToken(next);
  } else if (event.key === "ArrowUp" || event.key === "ArrowDown") {
    event.preventDefault();
    const items = [...document.querySelectorAll(".examples > li")].filter((each) => firingTokensOf(each).length);
    const next = items[items.indexOf(item) + (event.key === "ArrowDown" ? 1 : -1)];
    if (next) focusToken(next.querySelector(".peak") ?? firingTokensOf(next)[0]);
  } else if (event.key === "Escape") {
    event.preventDefault();
    token.blur();
  }
}

/** The group of examples before or after the one that is being read: it is scrolled to, and the focus goes there. */
export function goToGroup(step) {
  const groups = [...document.querySelectorAll(".group")].filter((group) => group.offsetParent !== null);
  const line = (document.querySelector(".toolbar")?.offsetHeight ?? 0) + 40;
  const focused = groups.indexOf(document.activeElement);
  const read = groups.findLastIndex((group) => group.getBoundingClientRect().top < line);
  const next = groups[focused >= 0 ? focused + step : step > 0 ? read + 1 : Math.max(read - 1, 0)];
  if (!next) return;
  next.focus({ preventScroll: true });
  next.scrollIntoView({ block: "start", behavior: "instant" });
}

/** Listen, and make the peak of each example reachable with the tab key. */
export function startTokens() {
  const examples = document.querySelector(".all-examples");
  if (!examples) return;
  for (const item of examples.querySelectorAll(".examples > li")) {
    const first = item.querySelector(".peak") ?? item.querySelector(".on");
    if (first) first.tabIndex = 0;
  }
  examples.addEventListener("keydown", walkTokens);
  examples.addEventListener("click", (event) => {
    const token = event.target.closest(FIRING_TOKENS);
    if (token) focusToken(token);
  });
}
