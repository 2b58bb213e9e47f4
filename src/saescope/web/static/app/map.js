// The map page: what the controls, keys and pointers do to the view, and what of it stands in the address.
import { bytes, query } from "./api.js";
import { announce, h, island, visible } from "./dom.js";
import { bind } from "./keys.js";
import { MapColours } from "./map_colours.js";
import { MapDrawing, MapView, pointSide } from "./map_drawing.js";
import { MapLabels, MapList } from "./map_list.js";
import { MapPointer } from "./map_pointer.js";
import { MapPoints, PointGrid } from "./map_points.js";
import { decimal, percent, whole } from "./numbers.js";
import { readState, writeState } from "./state.js";

const MAP_DEFAULTS = { x: 0, y: 0, zoom: 1, colour: "density", search: "", at: -1 };
const POINT_REACH = 14; // pixels around the pointer in which a point is pointed at
const MAP_COMPANY = 300; // features in view, about, around one that was asked for
const MAP_PAN = 60;
const MAP_ZOOM = 1.5;
const MAP_LABEL_WAIT = 90; // ms that a pointer rests before a label is asked for
const MAP_WRITE_WAIT = 250;

/** `<sae-map>`: the page's controls and canvases are inside it. */
export class SaeMap extends HTMLElement {
  async connectedCallback() {
    this.data = island("map");
    if (!this.data) return;
    this.state = readState(MAP_DEFAULTS);
    this.view = new MapView();
    this.canvas = this.querySelector("canvas[data-points]");
    this.above = this.querySelector("canvas[data-above]");
    this.frame = this.querySelector("[data-frame]");
    this.tip = this.querySelector("[data-tip-of-map]");
    this.drawing = new MapDrawing(this.canvas);
    this.labels = new MapLabels(this.data.rows, this.data.analysis);
    this.list = new MapList(this.querySelector("[data-list]"), this.labels, (feature) => this.addressOf(feature));
    this.hits = null;
    this.chosen = null;
    this.pointed = -1;
    this.enable(false);
    for (const part of this.querySelectorAll("[data-scripted]")) part.hidden = false;
    try {
      this.points = new MapPoints(await bytes(this.data.points, { analysis: this.data.analysis }));
    } catch (error) {
      this.say(error.message);
      return;
    }
    this.grid = new PointGrid(this.points);
    this.say("");
    this.listen();
    this.look();
    new ResizeObserver(() => this.resize()).observe(this.frame);
    this.resize();
    this.begin();
    this.enable(true);
  }

  /** Controls take nothing before there are points: what was pressed until then would be lost without a word. */
  enable(on) {
    for (const control of this.querySelectorAll("button, input, select")) control.disabled = !on;
  }

  /** Show what the address asks for. */
  begin() {
    const { x, y, zoom, search, at } = this.state;
    this.view.zoomAt(zoom);
    this.view.moveTo(x, y);
    const given = new URLSearchParams(location.search);
    if (at >= 0) this.jump(at, !given.has("zoom"));
    if (search) this.find(search);
    this.redraw();
  }

  addressOf(feature) {
    return this.data.feature.replace("{index}", feature);
  }

  say(words) {
    this.querySelector("[data-says]").textContent = words;
  }

  // What changes the picture

  resize() {
    const { clientWidth: width, clientHeight: height } = this.frame;
    if (!width || !height) return;
    const ratio = window.devicePixelRatio || 1;
    this.view.resize(width, height, this.points);
    this.drawing.resize(width, height, ratio);
    this.above.width = Math.round(width * ratio);
    this.above.height = Math.round(height * ratio);
    this.redraw();
  }

  /** Colours and marks anew, after the scheme, the search or what is chosen has changed. */
  look() {
    const colours = new MapColours(this);
    const flags = new Uint8Array(this.points.size);
    for (const marked of [this.hits, this.chosen]) for (const place of marked ?? []) flags[place] = 1;
    this.paint = {
      background: colours.background,
      colours: colours.of(this.points, this.state.colour, this.hits, this.chosen),
      marked: { flags, some: Boolean(this.hits || this.chosen) },
    };
    for (const legend of this.querySelectorAll("[data-legend]")) legend.hidden = legend.dataset.legend !== this.state.colour;
    this.querySelector("[data-legend-hits]").hidden = !this.hits;
    this.querySelector("[data-legend-chosen]").hidden = !this.chosen;
    this.redraw();
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      if (!this.drawing.picture) return;
      this.drawing.draw(this.points, this.view, this.paint);
      this.drawAbove();
      this.dataset.drawn = "";
    });
  }

  /** Rings and the lasso, on a canvas of their own. */
  drawAbove() {
    const ratio = this.above.width / this.view.width;
    const brush = this.above.getContext("2d");
    brush.setTransform(ratio, 0, 0, ratio, 0, 0);
    brush.clearRect(0, 0, this.view.width, this.view.height);
    const style = getComputedStyle(this);
    brush.strokeStyle = style.getPropertyValue("--map-ring");
    brush.lineWidth = 2;
    const radius = pointSide(this.points.size, this.view.zoom) / 2 + 4;
    for (const [place, wide] of [[this.points.placeOf(this.state.at) ?? -1, 5], [this.pointed, 0]]) {
      if (place < 0) continue;
      brush.beginPath();
      brush.arc(...this.view.toCanvas(this.points.x[place], this.points.y[place]), radius + wide, 0, 2 * Math.PI);
      brush.stroke();
    }
    if (!this.lassoed) return;
    brush.setLineDash([6, 4]);
    brush.beginPath();
    for (const [left, top] of this.lassoed) brush.lineTo(left, top);
    brush.closePath();
    brush.stroke();
  }

  moved() {
    this.hideTip();
    this.redraw();
    for (const key of ["x", "y", "zoom"]) this.state[key] = Number(this.view[key].toFixed(5));
    this.remember();
  }

  remember() {
    clearTimeout(this.writing);
    this.writing = setTimeout(() => writeState(this.state, MAP_DEFAULTS), MAP_WRITE_WAIT);
  }

  pan(left, top) {
    this.view.pan(left, top);
    this.moved();
  }

  zoom(factor, left = undefined, top = undefined) {
    this.view.zoomAt(factor, left, top);
    this.moved();
  }

  whole() {
    Object.assign(this.view, { x: 0, y: 0, zoom: 1 });
    this.moved();
  }

  // What is pointed at

  nearest([left, top]) {
    return this.grid.nearest(...this.view.toPoints(left, top), POINT_REACH / this.view.scale);
  }

  point(at) {
    const place = this.nearest(at);
    this.frame.classList.toggle("pointing", place >= 0);
    if (place === this.pointed) return;
    this.pointed = place;
    this.redraw();
    clearTimeout(this.asking);
    if (place < 0) this.hideTip();
    else this.showTip(place);
  }

  showTip(place) {
    const feature = this.points.index[place];
    const value = this.points.logDensity[place];
    const cluster = this.points.cluster[place];
    const label = h("span", { class: "label" });
    const known = this.labels.known.get(feature);
    const write = (text) => label.replaceChildren(text ? visible(text) : "unlabelled");
    if (known === undefined) {
      label.append("…");
      this.asking = setTimeout(async () => {
        try {
          write((await this.labels.of([feature])).get(feature));
        } catch (error) {
          label.replaceChildren(error.message);
        }
      }, MAP_LABEL_WAIT);
    } else {
      write(known);
    }
    const fires = Number.isNaN(value) ? "never fires" : `density ${percent(10 ** value)}`;
    const numbers = h("span", { class: "numbers" }, fires, cluster < 0 ? "" : ` · cluster ${cluster}`);
    this.tip.replaceChildren(h("b", {}, feature), " ", label, numbers);
    this.tip.hidden = false;
    const [left, top] = this.view.toCanvas(this.points.x[place], this.points.y[place]);
    const { width, height } = this.tip.getBoundingClientRect();
    const most = Math.max(4, this.view.width - width - 4);
    this.tip.style.left = `${Math.max(4, Math.min(left - width / 2, most))}px`;
    this.tip.style.top = `${top > height + 20 ? top - height - 18 : top + 18}px`;
  }

  hideTip() {
    clearTimeout(this.asking);
    this.pointed = -1;
    this.tip.hidden = true;
    this.frame.classList.remove("pointing");
  }

  open(at, event) {
    const place = this.nearest(at);
    if (place < 0) return;
    const feature = this.points.index[place];
    if (event.pointerType === "touch") {  // a finger can not hover: the first tap tells, the link in the list opens
      this.pointed = place;
      this.showTip(place);
      this.choose([place], "tapped");
    } else if (event.ctrlKey || event.metaKey) {
      window.open(this.addressOf(feature), "_blank");
    } else {
      location.assign(this.addressOf(feature));
    }
  }

  // What is chosen

  lasso(corners) {
    this.lassoed = corners;
    this.hideTip();
    this.redraw();
  }

  inside(corners) {
    this.lassoed = null;
    const places = this.grid.inPolygon(corners.map(([left, top]) => this.view.toPoints(left, top)));
    const words = "Open the box around them as a list";
    this.choose(places, "inside the lasso", places.length ? { address: this.boxOf(...this.points.box(places)), words } : {});
    this.setLasso(false);
  }

  choose(places, what, how = {}) {
    this.chosen = new Set(places);
    this.look();
    this.listed(places, what, how);
  }

  listed(places, what, how) {
    const features = Array.from(places, (place) => this.points.index[place]);
    this.list.show(features.sort((one, other) => one - other), what, how);
  }

  inView() {
    const [left, high] = this.view.toPoints(0, 0);
    const [right, low] = this.view.toPoints(this.view.width, this.view.height);
    this.choose(this.grid.inBox(left, right, low, high), "in view", { address: this.boxOf(left, right, low, high) });
  }

  /** The list of the features inside a box. */
  boxOf(left, right, low, high) {
    const ends = [left, right, low, high].map((end, at) => this.points.original(end, at >> 1));
    const [min_map_x, max_map_x, min_map_y, max_map_y] = ends;
    return this.data.features + query({ min_map_x, max_map_x, min_map_y, max_map_y, analysis: this.data.analysis_asked });
  }

  forget() {
    this.chosen = null;
    this.list.element.hidden = true;
    this.look();
    this.frame.focus();
  }

  setLasso(on) {
    this.pointer.isLasso = on;
    this.querySelector("[data-do=lasso]").setAttribute("aria-pressed", on);
    this.frame.classList.toggle("lasso", on);
    if (!on) this.lasso(null);
  }

  // Search and jump

  async find(words) {
    this.finding?.abort();
    this.finding = new AbortController();
    this.state.search = words.trim();
    this.remember();
    if (!this.state.search) {
      this.hits = null;
      this.say("");
      this.look();
      return;
    }
    try {
      const { signal } = this.finding;
      const answer = await bytes(this.data.order, { search: this.state.search, analysis: this.data.analysis }, signal);
      const found = new Uint32Array(answer);
      this.hits = new Set();
      for (const feature of found) {
        const place = this.points.placeOf(feature);
        if (place !== undefined) this.hits.add(place);
      }
      this.say(`${whole(this.hits.size)} ${this.hits.size === 1 ? "feature" : "features"} found`);
      this.querySelector("[data-do=hits]").hidden = this.hits.size === 0;
    } catch (error) {
      if (error.name === "AbortError") return;
      this.hits = null;
      this.say(error.message);
    }
    this.look();
  }

  listHits() {
    const address = this.data.features + query({ search: this.state.search, analysis: this.data.analysis_asked });
    this.listed(this.hits ?? [], `found for “${this.state.search}”`, { address });
  }

  jump(feature, closer = true) {
    const place = this.points.placeOf(feature);
    if (place === undefined) {
      this.say(`Feature ${feature} has no place on this map.`);
      return;
    }
    this.state.at = feature;
    if (closer) {
      this.view.moveTo(this.points.x[place], this.points.y[place]);
      this.view.zoom = Math.max(this.view.zoom, Math.sqrt(this.points.size / MAP_COMPANY));
      this.moved();
    }
    this.remember();
    this.pointed = place;
    this.showTip(place);
    this.redraw();
    announce(`Feature ${feature} is in the middle of the map`);
  }

  // Controls

  listen() {
    this.pointer = new MapPointer(this.frame, {
      pan: (left, top) => this.pan(left, top),
      zoom: (factor, left, top) => this.zoom(factor, left, top),
      point: (at) => this.point(at),
      leave: () => {
        this.hideTip();
        this.redraw();
      },
      click: (at, event) => this.open(at, event),
      lasso: (corners) => this.lasso(corners),
      choose: (corners) => this.inside(corners),
    });
    const actions = {
      in: () => this.zoom(MAP_ZOOM),
      out: () => this.zoom(1 / MAP_ZOOM),
      whole: () => this.whole(),
      lasso: () => this.setLasso(!this.pointer.isLasso),
      view: () => this.inView(),
      hits: () => this.listHits(),
      forget: () => this.forget(),
    };
    for (const button of this.querySelectorAll("[data-do]")) button.addEventListener("click", actions[button.dataset.do]);
    bind("+", "zoom in", actions.in);
    bind("=", "zoom in", actions.in);
    bind("-", "zoom out", actions.out);
    bind("0", "the whole map", actions.whole);
    bind("l", "draw a lasso around features", actions.lasso);
    bind("v", "choose the features in view", actions.view);
    bind("Escape", "put the lasso away", () => this.setLasso(false));
    const steps = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    this.frame.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in steps)) return;
      event.preventDefault();
      this.pan(...steps[event.key].map((step) => step * MAP_PAN));
    });
    this.listenToFields();
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.look());
  }

  listenToFields() {
    const search = this.querySelector("[name=search]");
    search.value = this.state.search;
    search.addEventListener("input", () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.find(search.value), 200);
    });
    const colour = this.querySelector("[name=colour]");
    if (![...colour.options].some((option) => option.value === this.state.colour)) this.state.colour = MAP_DEFAULTS.colour;
    colour.value = this.state.colour;
    colour.addEventListener("change", () => {
      this.state.colour = colour.value;
      this.remember();
      this.look();
    });
    const ends = this.points.densities.map((value) => decimal(100 * 10 ** value, 2));
    this.querySelector("[data-low]").textContent = `${ends[0]} % or less`;
    this.querySelector("[data-high]").textContent = `${ends[1]} % or more`;
    for (const form of this.querySelectorAll("form")) form.addEventListener("submit", (event) => event.preventDefault());
    const jump = this.querySelector("[name=at]");
    if (this.state.at >= 0) jump.value = this.state.at;
    jump.form.addEventListener("submit", () => jump.value !== "" && this.jump(Number(jump.value)));
  }
}
