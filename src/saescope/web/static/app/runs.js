// The pages of training runs: which runs are drawn, along which axis, and what is new in their files every two seconds.
import { get } from "./api.js";
import { CurveChart, curveNumber, curveSign } from "./curves.js";
import { announce, h, island, visible } from "./dom.js";
import { whole } from "./numbers.js";
import { readState, writeState } from "./state.js";

const RUNS_STANDARD = { run: [], x: "num_tokens", log: false };
const RUNS_SOON = 2000; // milliseconds between questions while a run is written to
const RUNS_LATER = 15000;
const RUNS_MOST_POINTS = 3000; // of a curve, before it is thinned out again

export class SaeRuns extends HTMLElement {
  connectedCallback() {
    const given = island("runs");
    if (!given || this.runs) return;
    this.most = given.most;
    this.known = given.runs;
    this.runs = new Map(); // those that are drawn, by identity
    this.charts = new Map();
    this.host = this.querySelector("[data-curves]");
    this.state = readState(RUNS_STANDARD);
    this.form = this.querySelector("form.legend");
    this.startControls();
    for (const id of given.selected) this.add(id);
    this.classList.add("ready");
    this.look();
    document.addEventListener("visibilitychange", () => document.hidden || this.look());
  }

  disconnectedCallback() {
    clearTimeout(this.timer);
  }

  startControls() {
    const controls = this.querySelector("[data-controls]");
    controls.hidden = false;
    const [axis, log] = [controls.querySelector("select"), controls.querySelector("input")];
    if (![...axis.options].some((option) => option.value === this.state.x)) this.state.x = RUNS_STANDARD.x;
    axis.value = this.state.x;
    log.checked = this.state.log;
    controls.addEventListener("change", () => {
      this.state.x = axis.value;
      this.state.log = log.checked;
      this.remember();
      this.draw();
    });
    this.form?.addEventListener("change", (event) => this.chosen(event.target));
    this.form?.addEventListener("submit", (event) => event.preventDefault());
  }

  remember() {
    // no run at all is another thing than no choice, which shows the newest
    if (this.form) this.state.run = this.runs.size ? [...this.runs.keys()] : [""];
    writeState(this.state, RUNS_STANDARD);
  }

  chosen(box) {
    if (!box.checked) this.drop(box.value);
    else if (this.runs.size < this.most) this.add(box.value);
    else {
      box.checked = false;
      announce(`At most ${this.most} runs are drawn together.`);
      return;
    }
    this.remember();
    this.querySelector("[data-none]")?.remove();
    this.look();
  }

  add(id) {
    const used = new Set([...this.runs.values()].map((run) => run.slot));
    const slot = [...Array(this.most).keys()].find((each) => !used.has(each));
    this.runs.set(id, { id, slot, name: this.known[id]?.name ?? id, data: null });
    this.querySelector(`[data-sign="${id}"]`)?.replaceChildren(curveSign(slot));
  }

  drop(id) {
    this.runs.delete(id);
    this.querySelector(`[data-sign="${id}"]`)?.replaceChildren();
  }

  /** Ask for what is new, draw it, and ask again later. */
  async look() {
    clearTimeout(this.timer);
    const turn = (this.turn = (this.turn ?? 0) + 1);
    let changed = true;
    try {
      const answers = await Promise.all([...this.runs.values()].map((run) => this.ask(run)));
      changed = answers.some(Boolean) || this.drawn !== [...this.runs.keys()].join();
      this.failed = false;
    } catch (error) {
      if (!this.failed) announce(error.message);
      this.failed = true;
      changed = false;
    }
    if (turn !== this.turn) return; // another question was asked meanwhile
    if (changed) this.draw();
    this.tellStates();
    const soon = !this.failed && [...this.runs.values()].some((run) => run.data?.is_live);
    if (!document.hidden && this.isConnected) this.timer = setTimeout(() => this.look(), soon ? RUNS_SOON : RUNS_LATER);
  }

  /** Whether there was anything new. */
  async ask(run) {
    const before = run.data;
    if (before) {
      const found = await get("/api/runs/metrics", { run: run.id, after: before.last.step ?? 0 });
      if (found.version === before.version && runsLongest(before) + runsLongest(found) < RUNS_MOST_POINTS) {
        run.data = { ...found, curves: runsJoined(before, found) };
        return runsLongest(found) > 0;
      }
    }
    run.data = await get("/api/runs/metrics", { run: run.id });
    return true;
  }

  draw() {
    const runs = [...this.runs.values()].filter((run) => run.data);
    this.drawn = [...this.runs.keys()].join();
    const titles = new Map();
    for (const { data } of runs) for (const [name, { title }] of Object.entries(data.curves)) titles.set(name, title);
    for (const [name, chart] of this.charts) {
      if (titles.has(name)) continue;
      chart.figure.remove();
      this.charts.delete(name);
    }
    for (const [name, title] of titles) {
      if (!this.charts.has(name)) {
        this.charts.set(name, new CurveChart(name, title));
        this.host.append(this.charts.get(name).figure);
      }
      const series = runs.filter(({ data }) => data.curves[name]).map((run) => this.series(run, run.data.curves[name]));
      this.charts.get(name).draw({ series, log: this.state.log, axis: this.state.x });
    }
    this.querySelector("[data-last]").replaceChildren(this.table(runs, titles));
  }

  /** Points without a place on the axis (no number of tokens was written) are left out. */
  series(run, curve) {
    const kept = curve[this.state.x].flatMap((x, at) => (x === null ? [] : [at]));
    const of = (values) => kept.map((at) => values[at]);
    return { name: run.name, slot: run.slot, x: of(curve[this.state.x]), y: of(curve.value), step: of(curve.step) };
  }

  table(runs, titles) {
    const head = runs.map(({ name }) => h("th", { scope: "col", class: "n" }, visible(name)));
    const rows = [["step", "Step"], ["num_tokens", "Tokens"], ...titles].map(([name, title]) => {
      const values = runs.map(({ data }) => data.last[name] ?? null);
      const cells = values.map((value) => h("td", { class: "n", title: value }, curveNumber(name, value)));
      return h("tr", { "data-curve": name }, h("th", { scope: "row" }, visible(title)), cells);
    });
    const table = h("table", { class: "wide last-values" },
      h("caption", { class: "unseen" }, "The last value of every curve"),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Last value"), head)),
      h("tbody", {}, rows));
    return h("div", {},
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Last values" }, table),
      runs.flatMap(runsRemarks).map((words) => h("p", { class: "note" }, words)));
  }

  tellStates() {
    for (const { id, data } of this.runs.values()) {
      const place = this.querySelector(`[data-state="${id}"]`);
      if (!place || !data) continue;
      const seconds = data.seconds_since_written;
      const words = seconds === null ? "gone" : `written ${runsSince(seconds)}`;
      const share = data.num_planned_tokens ? (data.last.num_tokens ?? 0) / data.num_planned_tokens : null;
      const done = share === null ? null : `${Math.round(100 * share)}\u00a0% of its tokens`;
      place.textContent = [data.is_live ? "training" : null, done, words].filter(Boolean).join(", ");
    }
  }
}

/** What is to be said of a run beside its numbers. */
function runsRemarks({ name, data }) {
  const { num_rows: lines, num_damaged: damaged } = data;
  const said = [];
  if (!lines) said.push(`${name} has no line yet: the first comes after some steps.`);
  if (lines > runsLongest(data)) {
    said.push(`${name} has ${whole(lines)} lines; drawn are the lowest and the highest value of every stretch.`);
  }
  if (damaged) said.push(`${damaged} ${damaged === 1 ? "line" : "lines"} of ${name} could not be read.`);
  return said;
}

function runsSince(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h ago`;
  return `${whole(Math.round(seconds / 86400))} days ago`;
}

function runsLongest(data) {
  return Math.max(0, ...Object.values(data.curves).map(({ value }) => value.length));
}

/** Curves with what came after them; a curve that began later has nothing before. */
function runsJoined(before, after) {
  const curves = { ...before.curves };
  for (const [name, curve] of Object.entries(after.curves)) {
    const old = curves[name];
    curves[name] = old
      ? {
          title: curve.title,
          step: old.step.concat(curve.step),
          num_tokens: old.num_tokens.concat(curve.num_tokens),
          value: old.value.concat(curve.value),
        }
      : curve;
  }
  return curves;
}
