// The points of a map as columns, and a grid over them that finds what is near or inside without looking at all.
// Dead features come first, so that all others are drawn above them. Those stand in the order of their indices: sorted by
// density, a crowded part of the map would look dense wherever it is.

const MAP_TAIL = 0.02; // of the features on either side

/** Columns of N points. `x` and `y` are distances from the middle in units of the longer side, y upwards. */
export class MapPoints {
  constructor(buffer) {
    const count = buffer.byteLength / 20;
    const index = new Uint32Array(buffer, 0, count);
    const columns = [4, 8, 12].map((start) => new Float32Array(buffer, start * count, count));
    const cluster = new Int32Array(buffer, 16 * count, count);
    const places = Array.from(index.keys());
    const isDead = (place) => Number.isNaN(columns[2][place]);
    const order = [...places.filter(isDead), ...places.filter((place) => !isDead(place))];
    const ends = columns.slice(0, 2).map(pointEnds);
    this.size = count;
    this.middle = ends.map(([low, high]) => low / 2 + high / 2);
    this.span = Math.max(...ends.map(([low, high]) => high - low)) || 1;
    this.width = (ends[0][1] - ends[0][0]) / this.span;
    this.height = (ends[1][1] - ends[1][0]) / this.span;
    this.x = new Float32Array(count);
    this.y = new Float32Array(count);
    this.logDensity = new Float32Array(count);
    this.cluster = new Int32Array(count);
    this.index = new Uint32Array(count);
    this.places = new Map();
    order.forEach((from, place) => {
      this.index[place] = index[from];
      this.x[place] = (columns[0][from] - this.middle[0]) / this.span;
      this.y[place] = (columns[1][from] - this.middle[1]) / this.span;
      this.logDensity[place] = columns[2][from];
      this.cluster[place] = cluster[from];
      this.places.set(index[from], place);
    });
    const fires = this.logDensity.filter((value) => !Number.isNaN(value)).sort();
    const last = fires.length - 1;
    // where colours begin and end: the few beyond them would leave all others alike
    this.densities = last < 0 ? [0, 0] : [MAP_TAIL, 1 - MAP_TAIL].map((share) => fires[Math.round(share * last)]);
  }

  /** Where in the columns a feature is; undefined where it has no place on the map. */
  placeOf(feature) {
    return this.places.get(feature);
  }

  /** A coordinate (axis 0 is x, 1 is y) as the store has it. */
  original(coordinate, axis) {
    return coordinate * this.span + this.middle[axis];
  }

  /** The box around some points: left, right, low, high. */
  box(places) {
    const slack = 1e-6; // these are float32, the store has more digits
    return [this.x, this.y].flatMap((axis) => {
      const [low, high] = pointEnds(places.map((place) => axis[place]));
      return [low - slack, high + slack];
    });
  }
}

function pointEnds(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : [0, 0];
}

const POINTS_PER_CELL = 4;

/** Points by square cells of one size. */
export class PointGrid {
  constructor(points) {
    this.points = points;
    this.side = Math.max(1, Math.ceil(Math.sqrt(points.size / POINTS_PER_CELL)));
    const cells = this.side * this.side;
    this.starts = new Uint32Array(cells + 1);
    const at = new Uint32Array(points.size);
    for (let place = 0; place < points.size; place++) {
      at[place] = this.cell(this.step(points.x[place]), this.step(points.y[place]));
      this.starts[at[place] + 1]++;
    }
    for (let cell = 0; cell < cells; cell++) this.starts[cell + 1] += this.starts[cell];
    const next = this.starts.slice(0, cells);
    this.members = new Uint32Array(points.size);
    for (let place = 0; place < points.size; place++) this.members[next[at[place]]++] = place;
  }

  step(coordinate) {
    return Math.min(this.side - 1, Math.max(0, Math.floor((coordinate + 0.5) * this.side)));
  }

  cell(column, row) {
    return row * this.side + column;
  }

  /** Tell every point of the cells that a box touches. */
  inCells(left, right, low, high, tell) {
    const [first, last] = [this.step(left), this.step(right)];
    for (let row = this.step(low); row <= this.step(high); row++) {
      const end = this.starts[this.cell(last, row) + 1];
      for (let at = this.starts[this.cell(first, row)]; at < end; at++) tell(this.members[at]);
    }
  }

  /** The point nearest to a place, or -1 where none is within `radius`; of equally near ones the one drawn last. */
  nearest(x, y, radius) {
    let found = -1;
    let best = radius * radius;
    this.inCells(x - radius, x + radius, y - radius, y + radius, (place) => {
      const across = this.points.x[place] - x;
      const up = this.points.y[place] - y;
      const distance = across * across + up * up;
      if (distance < best || (distance === best && place > found)) [found, best] = [place, distance];
    });
    return found;
  }

  /** Points inside a box. */
  inBox(left, right, low, high) {
    const found = [];
    const { x, y } = this.points;
    this.inCells(left, right, low, high, (place) => {
      if (x[place] >= left && x[place] <= right && y[place] >= low && y[place] <= high) found.push(place);
    });
    return found;
  }

  /** Points inside a polygon of [x, y] corners, by the even-odd rule. */
  inPolygon(corners) {
    if (corners.length < 3) return [];
    const [across, up] = [0, 1].map((axis) => pointEnds(corners.map((corner) => corner[axis])));
    const { x, y } = this.points;
    return this.inBox(...across, ...up).filter((place) => isInPolygon(x[place], y[place], corners));
  }
}

function isInPolygon(x, y, corners) {
  let inside = false;
  for (let at = 0, before = corners.length - 1; at < corners.length; before = at++) {
    const [ax, ay] = corners[at];
    const [bx, by] = corners[before];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) inside = !inside;
  }
  return inside;
}
