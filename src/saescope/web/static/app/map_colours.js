// Colours of points, from the style sheet, so that light and dark are decided in one place.

const MAP_RAMP = ["--map-0", "--map-1", "--map-2", "--map-3", "--map-4"];
const MAP_CLUSTERS = 10;

/** What a point can be coloured by. */
export class MapColours {
  constructor(element) {
    const style = getComputedStyle(element);
    const read = (name) => mapRgb(style.getPropertyValue(name).trim());
    this.background = mapPixel(read("--map-paper"));
    this.dim = mapPixel(read("--map-dim"));
    this.dead = mapPixel(read("--map-dead"));
    this.hit = mapPixel(read("--map-hit"));
    this.chosen = mapPixel(read("--map-chosen"));
    this.ramp = mapRamp(MAP_RAMP.map(read));
    this.clusters = Array.from({ length: MAP_CLUSTERS }, (_, at) => mapPixel(read(`--map-c${at}`)));
  }

  /** A pixel for each point: by "density" or "cluster"; while `hits` are looked for, all others step back. */
  of(points, how, hits, chosen) {
    const [low, high] = points.densities;
    const last = this.ramp.length - 1;
    const step = last / (high - low || 1);
    return Uint32Array.from(points.index, (_, place) => {
      if (chosen?.has(place)) return this.chosen;
      if (hits) return hits.has(place) ? this.hit : this.dim;
      const value = points.logDensity[place];
      if (how === "cluster") {
        const cluster = points.cluster[place];
        return cluster < 0 ? this.dead : this.clusters[cluster % MAP_CLUSTERS];
      }
      return Number.isNaN(value) ? this.dead : this.ramp[Math.max(0, Math.min(last, Math.round((value - low) * step)))];
    });
  }
}

function mapRgb(text) {
  const digits = text.slice(1);
  const wide = digits.length === 3 ? [...digits].map((digit) => digit + digit).join("") : digits;
  return [0, 2, 4].map((at) => Number.parseInt(wide.slice(at, at + 2), 16));
}

/** The number that stands for a colour in a picture, whichever way round this machine keeps bytes. */
function mapPixel(rgb) {
  return new Uint32Array(Uint8ClampedArray.of(...rgb, 255).buffer)[0];
}

function mapRamp(stops, count = 256) {
  return Array.from({ length: count }, (_, at) => {
    const place = (at / (count - 1)) * (stops.length - 1);
    const first = Math.min(Math.floor(place), stops.length - 2);
    const share = place - first;
    return mapPixel(stops[first].map((value, channel) => value + (stops[first + 1][channel] - value) * share));
  });
}
