// Elements from values. Text only ever becomes text: nothing here reads HTML.

/** An element: `h("a", { href, class: "x", onclick: f }, "words", child)`. Attributes that are null or false are left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, each] of Object.entries(value)) element.style.setProperty(key, each);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const BLANKS = /( +)|(\r?\n)|(\t)|([\x00-\x1f\x7f-\x9f\u2028\u2029]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff])/g;

/** Token text in which spaces, tabs and line ends can be seen; the same as `drawing.visible` draws. */
export function visible(text) {
  const parts = document.createDocumentFragment();
  let at = 0;
  for (const found of text.matchAll(BLANKS)) {
    parts.append(text.slice(at, found.index));
    if (found[4]) {
      const code = found[4].charCodeAt(0);
      const name = code < 256 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
      parts.append(h("i", { class: "c" }, name));
    } else {
      parts.append(h("i", { class: found[1] ? "s" : found[2] ? "l" : "t" }, found[0]));
    }
    at = found.index + found[0].length;
  }
  parts.append(text.slice(at));
  return parts;
}

/** The values of a data island, or null where the page has none of this name. */
export function island(identity) {
  const element = document.getElementById(identity);
  return element ? JSON.parse(element.textContent) : null;
}

/** Opacity of a token's colour, as `drawing.shade` gives it. */
export function shade(value, strongest) {
  if (!value || !(strongest > 0)) return 0;
  return 0.05 + 0.95 * Math.log10(1 + 9 * Math.min(Math.abs(value) / strongest, 1));
}

/** Tell those who listen to the page, not only those who see it. */
export function announce(words) {
  const place = document.getElementById("status");
  if (place) place.textContent = words;
}
