// Points into pixels: one picture written number by number, since a rectangle for each of 100,000 points takes ten times
// as long. The picture is a margin larger than the canvas, so that a point at the edge needs no clipping.

const MAP_MARGIN = 24;
const MAP_MOST_RATIO = 3; // beyond it a point would be wider than the margin
const MAP_MOST_TIMES = 5000;

/** What is seen: the middle of the canvas in the points' coordinates, and how far it is zoomed in. */
export class MapView {
  constructor() {
    this.x = 0;
    this.y = 0;
    this.zoom = 1;
    this.width = 1;
    this.height = 1;
    this.fit = 1;
  }

  /** The canvas in pixels of the page; at zoom 1 all points are seen. */
  resize(width, height, points) {
    this.width = width;
    this.height = height;
    const [across, up] = [points.width, points.height].map((share) => Math.max(share, 1e-3));
    this.fit = 0.92 * Math.min(width / across, height / up, 2 * Math.max(width, height));
  }

  get scale() {
    return this.fit * this.zoom;
  }

  /** From the canvas to the points' coordinates, and back. */
  toPoints(left, top) {
    return [this.x + (left - this.width / 2) / this.scale, this.y - (top - this.height / 2) / this.scale];
  }

  toCanvas(x, y) {
    return [this.width / 2 + (x - this.x) * this.scale, this.height / 2 - (y - this.y) * this.scale];
  }

  pan(left, top) {
    this.moveTo(this.x - left / this.scale, this.y + top / this.scale);
  }

  moveTo(x, y) {
    this.x = Math.min(0.6, Math.max(-0.6, x));
    this.y = Math.min(0.6, Math.max(-0.6, y));
  }

  /** Zoom so that what lies at a place of the canvas stays there. */
  zoomAt(factor, left = this.width / 2, top = this.height / 2) {
    const [x, y] = this.toPoints(left, top);
    this.zoom = Math.min(2000, Math.max(0.5, this.zoom * factor));
    const [nowX, nowY] = this.toPoints(left, top);
    this.moveTo(this.x + x - nowX, this.y + y - nowY);
  }
}

/** Side of a point in pixels of the page: larger when there are few, or when one looks closer. */
export function pointSide(count, zoom) {
  const alone = count <= 5000 ? 3.5 : count <= 30000 ? 2 : 1.5;
  return Math.min(4, Math.max(1, alone + 0.5 * Math.log2(Math.max(zoom, 1))));
}

/** A canvas that shows points. `colours` are pixels as the picture holds them; marked points stand above, and larger. */
export class MapDrawing {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.ratio = 1;
    this.picture = null;
  }

  resize(width, height, ratio) {
    this.ratio = Math.min(ratio, MAP_MOST_RATIO);
    this.canvas.width = Math.max(1, Math.round(width * this.ratio));
    this.canvas.height = Math.max(1, Math.round(height * this.ratio));
    this.picture = new ImageData(this.canvas.width + 2 * MAP_MARGIN, this.canvas.height + 2 * MAP_MARGIN);
    this.pixels = new Uint32Array(this.picture.data.buffer);
  }

  draw(points, view, { background, colours, marked }) {
    const started = performance.now();
    this.pixels.fill(background);
    const side = Math.round(pointSide(points.size, view.zoom) * this.ratio);
    this.write(points, view, colours, marked, 0, this.disc(side));
    if (marked.some) this.write(points, view, colours, marked, 1, this.disc(side + Math.ceil(2 * this.ratio)));
    this.context.putImageData(this.picture, -MAP_MARGIN, -MAP_MARGIN);
    (window.saescopeMapTimes ??= []).push(performance.now() - started);
    if (window.saescopeMapTimes.length > MAP_MOST_TIMES) window.saescopeMapTimes.shift();
  }

  write(points, view, colours, marked, which, disc) {
    const { x, y, size } = points;
    const { pixels } = this;
    const row = this.picture.width;
    const scale = view.scale * this.ratio;
    const left = this.canvas.width / 2 - view.x * scale + MAP_MARGIN;
    const top = this.canvas.height / 2 + view.y * scale + MAP_MARGIN;
    const least = MAP_MARGIN / 2; // half a margin is more than half a point
    const [most, lowest] = [row - least, this.picture.height - least];
    const flags = marked.flags;
    const length = disc.length;
    for (let place = 0; place < size; place++) {
      if (marked.some && flags[place] !== which) continue;
      const across = left + x[place] * scale;
      const down = top - y[place] * scale;
      if (across < least || across >= most || down < least || down >= lowest) continue;
      const at = (down | 0) * row + (across | 0);
      const colour = colours[place];
      for (let step = 0; step < length; step++) pixels[at + disc[step]] = colour;
    }
  }

  /** Steps from a point's pixel to all pixels of a disc of this width. */
  disc(side) {
    const steps = [];
    const reach = side / 2;
    for (let down = 0; down < side; down++) {
      for (let across = 0; across < side; across++) {
        const [dx, dy] = [across + 0.5 - reach, down + 0.5 - reach];
        if (dx * dx + dy * dy > reach * reach + 0.25) continue;
        steps.push((down - (side >> 1)) * this.picture.width + across - (side >> 1));
      }
    }
    return Int32Array.from(steps);
  }
}
