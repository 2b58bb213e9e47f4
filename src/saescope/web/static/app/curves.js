// Curves of several runs in one chart: an SVG in pixels of the screen, read with the pointer or with arrow keys.
import { announce, h } from "./dom.js";
import { decimal, percent, whole } from "./numbers.js";

const CURVE_SVG = "http://www.w3.org/2000/svg";
const CURVE_DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4", "5 2 2 2 2 2", "1 4", "16 3 4 3"];
const CURVE_MARKS = [
  "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0", "M-3-3h6v6h-6z", "M0-4L4 3H-4z", "M0-4L4 0L0 4L-4 0z",
  "M0 4L4-3H-4z", "M-4-1H-1V-4H1V-1H4V1H1V4H-1V1H-4z", "M-4-2h8v4h-8z", "M-2-4h4v8h-4z",
];
const CURVE_HEIGHT = 190;
const CURVE_SPACE = { left: 58, right: 12, top: 6, bottom: 26 };

function curveElement(tag, attributes = {}, ...children) {
  const element = document.createElementNS(CURVE_SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function curveColoured(element, slot) {
  element.style.setProperty("--c", `var(--run-${slot})`);
  return element;
}

function curveMark(slot, x, y) {
  return curveColoured(curveElement("path", { class: "blob", d: CURVE_MARKS[slot], transform: `translate(${x} ${y})` }), slot);
}

function curveLine(slot, path) {
  return curveColoured(curveElement("path", { class: "line", d: path, "stroke-dasharray": CURVE_DASHES[slot] }), slot);
}

/** A short piece of a run's line, for a legend. */
export function curveSign(slot) {
  const sign = { width: 36, height: 16, viewBox: "0 0 36 16", "aria-hidden": "true" };
  return curveElement("svg", sign, curveLine(slot, "M1 8H35"), curveMark(slot, 18, 8));
}

/** A value of a curve as it is read. */
export function curveNumber(name, value) {
  if (value === null || value === undefined) return "–";
  if (["step", "num_tokens", "num_skipped_steps"].includes(name) && Number.isInteger(value)) return whole(value);
  return name === "dead_share" ? percent(value) : decimal(value);
}

/** Round numbers between two, about so many. On a log scale powers of ten, and 2 and 5 of them where there is room. */
export function curveTicks(low, high, log, count = 4) {
  const decades = log ? Math.log10(high / low) : 0;
  if (log && decades > 1) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
      for (const factor of decades < 2.5 ? [1, 2, 5] : [1]) ticks.push(Number(`${factor}e${power}`));
    }
    const inside = ticks.filter((tick) => tick >= low && tick <= high);
    const every = Math.ceil(inside.length / 7);
    return inside.filter((_, at) => at % every === 0);
  }
  if (!(high > low)) return [low];
  const unit = 10 ** Math.floor(Math.log10((high - low) / count));
  const step = unit * [1, 2, 5, 10].find((factor) => (high - low) / (factor * unit) <= count);
  const ticks = [];
  for (let at = Math.ceil(low / step); at * step <= high * (1 + 1e-12) && ticks.length < 20; at++) {
    ticks.push(Number((at * step).toPrecision(12)));
  }
  return ticks;
}

/** The place of the value nearest to x in a sorted list; -1 where it is empty. */
export function curveNearest(values, x) {
  let low = 0;
  let high = values.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low > 0 && Math.abs(values[low - 1] - x) <= Math.abs(values[low] - x) ? low - 1 : low < values.length ? low : -1;
}

function curveShort(value) {
  const size = Math.abs(value);
  for (const [unit, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= unit) return `${decimal(value / unit, 4)}${letter}`;
  }
  return decimal(value, 3);
}

/** One chart. `draw` may be called again with other series. */
export class CurveChart {
  constructor(name, title) {
    this.name = name;
    this.title = title;
    this.svg = curveElement("svg", { role: "img", tabindex: "0" });
    this.box = h("div", { class: "at", hidden: true });
    this.left_out = h("p", { class: "left-out", hidden: true });
    const parts = [h("figcaption", {}, title), this.svg, this.box, this.left_out];
    this.figure = h("figure", { class: "curve", "data-name": name }, parts);
    this.svg.addEventListener("pointermove", (event) => this.point(event.clientX - this.svg.getBoundingClientRect().left));
    this.svg.addEventListener("pointerleave", () => this.leave());
    this.svg.addEventListener("blur", () => this.leave());
    this.svg.addEventListener("keydown", (event) => this.pressed(event));
    new ResizeObserver(() => this.asked && this.draw(this.asked)).observe(this.figure);
  }

  /** Series are `{name, slot, x, y, step}` with lists of one length, x rising; y may hold null. */
  draw(asked) {
    this.asked = asked;
    const { series, log, axis } = asked;
    const width = this.figure.clientWidth;
    if (!width) return;
    const drawn = (y) => y !== null && (!log || y > 0);
    const xs = series.flatMap(({ x }) => (x.length ? [x[0], x[x.length - 1]] : []));
    let [low, high] = [Infinity, -Infinity];
    let hidden = 0;
    for (const { y } of series) {
      for (const value of y) {
        if (drawn(value)) {
          low = Math.min(low, value);
          high = Math.max(high, value);
        } else if (value !== null) hidden++;
      }
    }
    this.left_out.hidden = !hidden;
    const values = hidden === 1 ? "value" : "values";
    this.left_out.textContent = `${whole(hidden)} ${values} of 0 or below can not stand on a log scale`;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${CURVE_HEIGHT}`);
    this.svg.setAttribute("aria-label", this.summary());
    if (low > high) {
      this.svg.replaceChildren(curveElement("text", { x: width / 2, y: 90, "text-anchor": "middle" }, "nothing to draw yet"));
      this.x_of = null;
      return;
    }
    if (log) [low, high] = low === high ? [low / 1.5, high * 1.5] : [low / 1.05, high * 1.05];
    else {
      const margin = (high - low) * 0.04 || Math.abs(high) * 0.05;
      [low, high] = margin ? [low - margin, high + margin] : [0, 1];
    }
    const [first, last] = [Math.min(...xs), Math.max(...xs)];
    const wide = width - CURVE_SPACE.left - CURVE_SPACE.right;
    const tall = CURVE_HEIGHT - CURVE_SPACE.top - CURVE_SPACE.bottom;
    const scale = log ? Math.log : (value) => value;
    this.x_of = (x) => CURVE_SPACE.left + (last > first ? (x - first) / (last - first) : 0.5) * wide;
    this.y_of = (y) => CURVE_SPACE.top + (1 - (scale(y) - scale(low)) / (scale(high) - scale(low))) * tall;
    const parts = [];
    const base = CURVE_SPACE.top + tall;
    for (const tick of curveTicks(low, high, log)) {
      const y = this.y_of(tick).toFixed(1);
      parts.push(curveElement("path", { class: "grid", d: `M${CURVE_SPACE.left} ${y}H${width - CURVE_SPACE.right}` }));
      const words = this.name === "dead_share" ? percent(tick) : curveShort(tick);
      parts.push(curveElement("text", { x: CURVE_SPACE.left - 6, y: Number(y) + 4, "text-anchor": "end" }, words));
    }
    parts.push(curveElement("path", { class: "base", d: `M${CURVE_SPACE.left} ${base}H${width - CURVE_SPACE.right}` }));
    for (const tick of curveTicks(first, last, false, Math.max(2, Math.floor(wide / 75)))) {
      const x = this.x_of(tick);
      const anchor = x > width - 30 ? "end" : "middle";
      parts.push(curveElement("text", { x: x.toFixed(1), y: base + 16, "text-anchor": anchor }, curveShort(tick)));
    }
    for (const each of series) parts.push(...this.line(each, drawn));
    this.cursor = curveElement("g", {});
    this.svg.replaceChildren(...parts, this.cursor);
    this.axis = axis;
    if (this.at !== undefined) this.show(this.at);
  }

  line({ x, y, slot }, drawn) {
    let path = "";
    let pen = false;
    let next = -Infinity;
    const marks = [];
    let last = null;
    for (let at = 0; at < x.length; at++) {
      if (!drawn(y[at])) {
        pen = false;
        continue;
      }
      const place = [this.x_of(x[at]).toFixed(1), this.y_of(y[at]).toFixed(1)];
      const alone = !pen && (at + 1 === x.length || !drawn(y[at + 1]));
      path += `${pen ? "L" : "M"}${place[0]} ${place[1]}`;
      pen = true;
      last = place;
      if (alone || Number(place[0]) > next) {
        if (alone || next > -Infinity) marks.push(curveMark(slot, ...place));
        next = Number(place[0]) + 80 + 9 * slot;
      }
    }
    if (last) marks.push(curveMark(slot, ...last));
    return [curveLine(slot, path), ...marks];
  }

  /** In words: where every run begins and ends. */
  summary() {
    const said = this.asked.series.map(({ name, y }) => {
      const held = y.filter((value) => value !== null);
      if (!held.length) return `${name}: no value`;
      return `${name}: from ${curveNumber(this.name, held[0])} to ${curveNumber(this.name, held[held.length - 1])}`;
    });
    return `${this.title}. ${said.join("; ") || "No run is chosen."}`;
  }

  point(place) {
    if (!this.x_of) return;
    let best = null;
    for (const { x } of this.asked.series) {
      const [first, last] = [0, x.length - 1];
      if (last < first) continue;
      const wanted = this.x_at(place);
      const found = x[curveNearest(x, wanted)];
      if (best === null || Math.abs(found - wanted) < Math.abs(best - wanted)) best = found;
    }
    if (best !== null) this.show(best);
  }

  x_at(place) {
    const [zero, one] = [this.x_of(0), this.x_of(1)];
    return one === zero ? 0 : (place - zero) / (one - zero);
  }

  show(at) {
    this.at = at;
    const x = this.x_of(at).toFixed(1);
    const rows = [];
    const upright = `M${x} ${CURVE_SPACE.top}V${CURVE_HEIGHT - CURVE_SPACE.bottom}`;
    const marks = [curveElement("path", { class: "cursor", d: upright })];
    let step = null;
    for (const each of this.asked.series) {
      const found = curveNearest(each.x, at);
      if (found < 0 || at > each.x[each.x.length - 1] || at < each.x[0]) continue;
      const value = each.y[found];
      if (each.x[found] === at) step = each.step[found];
      if (value !== null && (!this.asked.log || value > 0)) {
        marks.push(curveMark(each.slot, this.x_of(each.x[found]).toFixed(1), this.y_of(value).toFixed(1)));
      }
      const near = each.x[found] === at ? "" : ` at ${whole(each.x[found])}`;
      const exact = h("b", { class: "n" }, value === null ? "no number" : String(value));
      rows.push(h("div", {}, curveSign(each.slot), h("span", {}, each.name), exact, near));
    }
    const beside = step === null ? "" : `, step ${whole(step)}`;
    const words = this.axis === "step" ? `step ${whole(at)}` : `${whole(at)} tokens${beside}`;
    this.cursor.replaceChildren(...marks);
    this.box.replaceChildren(h("p", {}, words), ...rows);
    this.box.hidden = false;
    const [figure, box] = [this.figure.getBoundingClientRect(), this.box.getBoundingClientRect()];
    const wanted = Number(x) > figure.width / 2 ? Number(x) - 12 - box.width : Number(x) + 12;
    const most = document.documentElement.clientWidth - 4 - box.width - figure.left;
    this.box.style.left = `${Math.max(4 - figure.left, Math.min(most, wanted))}px`;
  }

  leave() {
    this.at = undefined;
    this.box.hidden = true;
    this.cursor?.replaceChildren();
  }

  pressed(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
    if (!(event.key in steps) || !this.x_of) return;
    event.preventDefault(); // the page's own arrow keys stay out of it
    const all = [...new Set(this.asked.series.flatMap(({ x }) => x))].sort((a, b) => a - b);
    if (!all.length) return;
    const now = this.at === undefined ? -1 : curveNearest(all, this.at);
    this.show(all[Math.max(0, Math.min(all.length - 1, now + steps[event.key]))]);
    announce([...this.box.children].map((line) => line.textContent).join("; "));
  }
}
