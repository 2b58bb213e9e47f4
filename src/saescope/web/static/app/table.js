// A table of any number of rows of which only those in view are in the page: a window onto a source of rows (rows.js), with
// a current row that keys move.
import { drawnRow, waitingRow } from "./listrow.js";
import { h } from "./dom.js";

const OVERSCAN = 8; // rows beyond either edge
const TALLEST = 8_000_000; // pixels; browsers draw nothing beyond some 17 million

/** The window. Tells `moved()` when it was scrolled, and `failed(error)` when rows can not be had. */
export class RowWindow {
  constructor(view, { moved, failed }) {
    this.view = view;
    this.table = view.querySelector("table");
    this.body = view.querySelector("tbody.rows");
    this.moved = moved;
    this.failed = failed;
    this.nodes = new Map(); // rows in the page, by place
    this.kept = new Map(); // rows that came with the page
    this.current = -1;
    this.source = null;
    this.waiting = 0;
    this.spaces = ["before", "after"].map((where) => {
      const cell = h("td");
      const space = h("tbody", { class: "space", "aria-hidden": "true" }, h("tr", {}, cell));
      this.body[where](space);
      return cell;
    });
    view.addEventListener("scroll", () => this.#soon(), { passive: true });
    new ResizeObserver(() => this.#soon()).observe(view);
  }

  /** Show another source, from the place `at` on. `kept` are rows that are in the page already, by place. */
  show(source, look, { at = 0, current = -1, kept = new Map() } = {}) {
    this.source?.close?.();
    Object.assign(this, { source, look, kept, current });
    for (const node of this.nodes.values()) node.remove();
    this.nodes.clear();
    this.body.replaceChildren(); // what the server drew and is not kept
    this.table.setAttribute("role", "grid");
    this.spaces[0].style.height = `${this.#heights[1]}px`; // room to be scrolled
    this.scrollToPlace(at);
    this.draw();
  }

  get total() {
    return this.source?.total ?? 0;
  }

  get rowHeight() {
    return parseFloat(getComputedStyle(this.table).getPropertyValue("--row-pixels")) || 40;
  }

  get #headHeight() {
    return this.table.tHead.offsetHeight;
  }

  get #room() {
    return Math.max(this.rowHeight, this.view.clientHeight - this.#headHeight);
  }

  /** Pixels of all rows, and of the place that they have: less, where no browser could give so much. */
  get #heights() {
    const all = this.total * this.rowHeight;
    return [all, Math.min(all, TALLEST)];
  }

  /** How far the rows are scrolled, in pixels of all rows. */
  get #top() {
    const [all, given] = this.#heights;
    if (all === given) return this.view.scrollTop;
    return this.view.scrollTop * ((all - this.#room) / (given - this.#room));
  }

  /** The first place in view. */
  get at() {
    return Math.max(0, Math.round(this.#top / this.rowHeight));
  }

  scrollToPlace(place) {
    const [all, given] = this.#heights;
    const top = Math.max(0, Math.min(place * this.rowHeight, all - this.#room));
    this.view.scrollTop = all === given ? top : top * ((given - this.#room) / (all - this.#room));
  }

  #soon() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
      this.moved();
    });
  }

  /** Let the page hold the rows in view, and ask for those that are not there yet. */
  draw() {
    if (!this.source) return;
    const top = this.#top;
    const first = Math.max(0, Math.floor(top / this.rowHeight) - OVERSCAN);
    const last = Math.min(this.total, Math.ceil((top + this.#room) / this.rowHeight) + OVERSCAN);
    const focused = document.activeElement?.closest?.("tr");
    const offset = this.view.scrollTop - top; // other than 0 only where rows have less place than they need
    const [, given] = this.#heights;
    const before = first * this.rowHeight + offset;
    // the table must not be too short for a moment, or it would be scrolled back: room first, new rows, then old ones go
    this.spaces[0].style.height = `${before}px`;
    this.spaces[1].style.height = `${Math.max(0, given - before - (last - first) * this.rowHeight)}px`;
    let next = null;
    for (let place = last - 1; place >= first; place--) {
      const old = this.nodes.get(place);
      if (!old || this.#isStale(old, place)) {
        const node = this.#node(place);
        if (old) old.replaceWith(node);
        else this.body.insertBefore(node, next);
        this.nodes.set(place, node);
      }
      next = this.nodes.get(place);
    }
    for (const [place, node] of this.nodes) {
      if (place >= first && place < last) continue;
      node.remove();
      this.nodes.delete(place);
    }
    if (focused && !focused.isConnected) this.nodes.get(this.current)?.focus({ preventScroll: true });
    this.table.setAttribute("aria-rowcount", this.total + 1);
    if (this.#lacks(first, last)) this.#load(first, last);
  }

  /** More is known of a row than when it was drawn. */
  #isStale(node, place) {
    if (!node.classList.contains("waiting")) return false;
    return Boolean(this.source.row(place)) || (!node.dataset.index && this.source.index(place) !== undefined);
  }

  #lacks(first, last) {
    for (let place = first; place < last; place++) if (!this.kept.has(place) && !this.source.row(place)) return true;
    return false;
  }

  #load(first, last) {
    const source = this.source;
    clearTimeout(this.pause);
    // while the scrollbar is dragged, rows fly past that nobody will read
    this.pause = setTimeout(async () => {
      try {
        await source.load(first, last);
      } catch (error) {
        if (source === this.source) this.failed(error);
        return;
      }
      if (source === this.source) this.draw();
    }, this.waiting);
    this.waiting = 60;
    clearTimeout(this.rest);
    this.rest = setTimeout(() => (this.waiting = 0), 200);
  }

  #node(place) {
    const row = this.source.row(place);
    const node = this.kept.get(place) ?? (row ? drawnRow(row, this.look) : waitingRow(this.source.index(place), this.look));
    node.setAttribute("aria-rowindex", place + 2);
    this.#mark(node, place);
    return node;
  }

  #mark(node, place) {
    const isCurrent = place === this.current || (this.current < 0 && place === 0);
    node.classList.toggle("current", place === this.current);
    node.tabIndex = isCurrent ? 0 : -1;
    for (const inside of node.querySelectorAll("th a, button")) inside.tabIndex = isCurrent ? 0 : -1;
  }

  /** Make a place the current one, and bring it into view. */
  select(place, { focus = true } = {}) {
    if (!this.total) return;
    const old = this.current;
    this.current = Math.max(0, Math.min(place, this.total - 1));
    const top = this.#top;
    const row = this.current * this.rowHeight;
    if (row < top) this.scrollToPlace(this.current);
    else if (row + this.rowHeight > top + this.#room) this.scrollToPlace(this.current + 1 - this.#room / this.rowHeight);
    this.draw();
    for (const each of new Set([old, this.current, 0])) {
      const node = this.nodes.get(each);
      if (node) this.#mark(node, each);
    }
    if (focus) this.nodes.get(this.current)?.focus({ preventScroll: true });
  }

  /** Put the focus on the current row if it is in view; where somebody scrolled away from it, it stays where it is. */
  focusCurrent() {
    const isInView = this.current >= this.at && this.current < this.at + this.numVisible;
    if (isInView) this.nodes.get(this.current)?.focus({ preventScroll: true });
  }

  /** Move the current row; the first move begins at the first row in view. */
  move(by) {
    this.select(this.current < 0 && Number.isFinite(by) ? this.at : this.current + by);
  }

  /** How many rows are in view. */
  get numVisible() {
    return Math.max(1, Math.floor(this.#room / this.rowHeight));
  }

  /** The place of a row's element. */
  placeOf(node) {
    return Number(node.getAttribute("aria-rowindex")) - 2;
  }

  /** The row at a place, if the page holds it. */
  node(place) {
    return this.nodes.get(place);
  }
}
