// One tooltip for the page: whatever has `data-tip` says it when pointed at or focused. A `title` becomes the same, so that
// the page without scripts says it too.
import { h } from "./dom.js";

let tip = null;

function words(element) {
  if (element.title) {
    element.dataset.tip = element.title;
    element.removeAttribute("title");
  }
  return element.dataset.tip;
}

function show(element) {
  const said = words(element);
  if (!said) return;
  tip ??= document.body.appendChild(h("div", { id: "tip", role: "tooltip" }));
  tip.textContent = said;
  tip.hidden = false;
  element.setAttribute("aria-describedby", "tip");
  const box = element.getBoundingClientRect();
  const own = tip.getBoundingClientRect();
  const left = Math.max(4, Math.min(box.left + box.width / 2 - own.width / 2, document.documentElement.clientWidth - own.width - 4));
  tip.style.left = `${left}px`;
  tip.style.top = `${box.top > own.height + 10 ? box.top - own.height - 6 : box.bottom + 6}px`;
}

function hide(element) {
  if (tip) tip.hidden = true;
  element?.removeAttribute("aria-describedby");
}

/** Listen. */
export function startTooltips() {
  const of = (event) => (event.target instanceof Element ? event.target.closest("[data-tip], [title]") : null);
  document.addEventListener("pointerover", (event) => (of(event) ? show(of(event)) : hide()));
  document.addEventListener("pointerout", (event) => hide(of(event)));
  document.addEventListener("focusin", (event) => of(event) && show(of(event)));
  document.addEventListener("focusout", (event) => hide(of(event)));
  document.addEventListener("scroll", () => hide(), { capture: true, passive: true });
}
