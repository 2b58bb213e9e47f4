// Where the rows of a list come from: a server, or an array in the page. Both say how many there are, which feature stands
// at a place, and what is known of it; whoever shows them need not know which of the two it is.
import { bytes, get } from "./api.js";

const BLOCK = 50;
const LABEL_KEYS = new Set(["precision", "recall", "lift"]);
const LONGEST_WORD = 64;

/** The number of a row that a key means, or null where it has none. */
export function valueOf(row, key) {
  if (key === "explanation_score") return row.explanation?.score ?? null;
  return (LABEL_KEYS.has(key) ? row.label?.[key] : row[key]) ?? null;
}

/** Words as the store cuts them: letters, digits and underscores of any script. */
export function wordsOf(text) {
  const found = text.toLowerCase().match(/[\p{L}\p{N}_]+/gu) ?? [];
  return found.map((word) => [...word].slice(0, LONGEST_WORD).join(""));
}

/** Rows in memory, each with `words`: what a search looks through. `query` has the names of the addresses. */
export class LocalRows {
  constructor(rows, query) {
    const wanted = [...new Set(wordsOf(query.search ?? ""))];
    if (query.search && !wanted.length) throw new Error(`The search “${query.search}” has no word in it.`);
    const bounds = [];
    for (const [name, value] of Object.entries(query)) {
      if (!/^(min|max)_/.test(name) || value === "" || value === null) continue;
      bounds.push([name.slice(4), name.startsWith("min_"), Number(value)]);
    }
    const passes = (row) => {
      for (const [key, isLowest, bound] of bounds) {
        const value = valueOf(row, key);
        if (value === null || (isLowest ? value < bound : value > bound)) return false;
      }
      if (!wanted.length) return true;
      const words = ` ${row.words ?? ""}`;
      return wanted.every((word) => words.includes(` ${word}`));
    };
    const sign = query.dir === "asc" ? 1 : -1;
    const before = (one, other) => {
      const [a, b] = [valueOf(one, query.sort), valueOf(other, query.sort)];
      if (a !== b && (a === null || b === null)) return a === null ? 1 : -1;
      return a === b ? one.index - other.index : sign * (a - b);
    };
    this.rows = rows.filter(passes).sort(before);
    this.total = this.rows.length;
  }

  row(place) {
    return this.rows[place];
  }

  index(place) {
    return this.rows[place]?.index;
  }

  async placeOf(index) {
    return this.rows.findIndex((row) => row.index === index);
  }

  async load() {
    // all is there
  }

  async draw() {
    return this.rows.length ? this.rows[Math.floor(Math.random() * this.rows.length)].index : null;
  }
}

/** Rows of a server: the first ones with the total, then the order of all indices, then blocks of rows as they are shown. */
export class LiveRows {
  constructor(api, query) {
    this.api = api;
    this.query = query;
    this.total = 0;
    this.known = new Map(); // rows by place
    this.first = []; // indices at the start, before the order is there
    this.order = null;
    this.asked = null; // the order, while it is on its way
    this.flights = new Map(); // what stops a block that is on its way, by its number
  }

  /** What the page came with: how many there are, and the indices of the first. */
  seed(total, indices) {
    this.total = total;
    this.first = indices;
  }

  /** Ask for the start of the list. */
  async open(signal) {
    const found = await get(`${this.api}/features`, { ...this.query, limit: BLOCK }, signal);
    this.seed(found.total, found.features.map((row) => row.index));
    found.features.forEach((row, place) => this.known.set(place, row));
  }

  row(place) {
    return this.known.get(place);
  }

  index(place) {
    return this.order ? this.order[place] : this.first[place];
  }

  async placeOf(index) {
    return (await this.#ordered()).indexOf(index);
  }

  async #ordered() {
    const { limit, after, ...which } = this.query;
    this.asked ??= bytes(`${this.api}/order`, which).then((buffer) => {
      const view = new DataView(buffer);
      this.order = Uint32Array.from({ length: buffer.byteLength / 4 }, (_, at) => view.getUint32(4 * at, true));
      this.total = this.order.length;
      return this.order;
    });
    try {
      return await this.asked;
    } catch (error) {
      this.asked = null; // another try may fare better
      throw error;
    }
  }

  /** Let the rows from `first` up to `last` be there; what is on its way and not among them is given up. */
  async load(first, last) {
    for (const [block, flight] of this.flights) {
      if ((block + 1) * BLOCK <= first || block * BLOCK >= last) {
        flight.abort();
        this.flights.delete(block);
      }
    }
    const wanted = [];
    for (let block = Math.floor(first / BLOCK); block * BLOCK < Math.min(last, this.total); block++) {
      const [start, end] = [Math.max(first, block * BLOCK), Math.min(last, (block + 1) * BLOCK, this.total)];
      let lacks = false;
      for (let place = start; place < end; place++) lacks ||= !this.known.has(place);
      if (lacks && !this.flights.has(block)) wanted.push(block);
    }
    if (!wanted.length) return;
    const flights = wanted.map((block) => {
      const flight = new AbortController();
      this.flights.set(block, flight);
      return flight;
    });
    await this.#ordered();
    await Promise.all(wanted.map((block, at) => this.#fetch(block, flights[at])));
  }

  async #fetch(block, flight) {
    if (flight.signal.aborted) return;
    try {
      const start = block * BLOCK;
      const index = Array.from(this.order.subarray(start, start + BLOCK));
      if (!index.length) return;
      const { features } = await get(`${this.api}/rows`, { index, analysis: this.query.analysis }, flight.signal);
      features.forEach((row, at) => this.known.set(start + at, row));
    } catch (error) {
      if (error.name !== "AbortError") throw error;
    } finally {
      if (this.flights.get(block) === flight) this.flights.delete(block);
    }
  }

  async draw() {
    const { limit, after, ...which } = this.query;
    return (await get(`${this.api}/random`, which)).index;
  }

  /** Give up what is on its way. */
  close() {
    for (const flight of this.flights.values()) flight.abort();
    this.flights.clear();
  }
}
