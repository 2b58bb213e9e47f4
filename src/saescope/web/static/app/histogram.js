// A histogram says what a bar counts, and shows where the value of a token lies that is pointed at or focused.
import { h } from "./dom.js";
import { decimal, whole } from "./numbers.js";

/** The largest value that a token's tooltip tells, by size; null where there is none. */
function valueTold(token) {
  const said = token.dataset.tip ?? token.title ?? "";
  const numbers = said.startsWith("token ") ? [...said.matchAll(/: (-?[\d.e+-]+)/g)].map((found) => found[1]) : [said.split(" ")[0]];
  const values = numbers.map(Number).filter(Number.isFinite);
  return values.length ? Math.max(...values.map(Math.abs)) : null;
}

/** `<sae-histogram edges="[...]" counts="[...]">` around drawn bars of equal width, one for each bin. */
export class SaeHistogram extends HTMLElement {
  connectedCallback() {
    this.edges = JSON.parse(this.getAttribute("edges"));
    this.counts = JSON.parse(this.getAttribute("counts"));
    this.plot = this.querySelector(".plot");
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerleave", () => this.point(null));
    if (this.hasAttribute("marks")) {
      this.gone = new AbortController();
      for (const kind of ["pointerover", "focusin"]) {
        document.addEventListener(kind, (event) => this.mark(event.target), { signal: this.gone.signal });
      }
    }
  }

  disconnectedCallback() {
    this.gone?.abort();
  }

  /** Say what the bar under the pointer counts. */
  point(event) {
    const words = this.querySelector(".scale");
    this.standing ??= [...words.childNodes];
    if (!event) {
      words.replaceChildren(...this.standing);
      return;
    }
    const box = this.plot.getBoundingClientRect();
    const bin = Math.min(Math.max(Math.floor(((event.clientX - box.left) / box.width) * this.counts.length), 0), this.counts.length - 1);
    words.replaceChildren(`${decimal(this.edges[bin], 3)} to ${decimal(this.edges[bin + 1], 3)}: ${whole(this.counts[bin])}`);
  }

  /** Mark where the value of this token lies. */
  mark(target) {
    const token = target instanceof Element ? target.closest(".on, .peak") : null;
    const value = token && valueTold(token);
    const place = value ? this.placeOf(value) : null;
    if (place === null) {
      this.marker?.remove();
      return;
    }
    this.marker ??= h("span", { class: "marker", "aria-hidden": "true" });
    this.marker.style.left = `${place}%`;
    this.plot.append(this.marker);
  }

  /** How far from the left, in percent. */
  placeOf(value) {
    const bin = this.edges.findLastIndex((edge) => edge <= value);
    if (bin < 0) return 0;
    if (bin >= this.counts.length) return 100;
    const share = (value - this.edges[bin]) / (this.edges[bin + 1] - this.edges[bin]);
    return (100 * (bin + share)) / this.counts.length;
  }
}
