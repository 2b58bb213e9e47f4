// Numbers as people read them; the same as saescope/web/numbers.py writes them.

const MINUS = "\u2212";

/** So many significant digits: 0.04217, 12.5, 1,234, 1.2e−7. `trim: false` is for columns. */
export function decimal(value, digits = 4, { trim = true } = {}) {
  if (!Number.isFinite(value)) return (Number.isNaN(value) ? "nan" : value > 0 ? "inf" : "-inf").replace("-", MINUS);
  const size = Math.abs(value);
  if (value !== 0 && !(size >= 1e-4 && size < 1e6)) {
    let [mantissa, exponent] = value.toExponential(digits - 1).split("e");
    if (trim && mantissa.includes(".")) mantissa = mantissa.replace(/0+$/, "").replace(/\.$/, "");
    return `${mantissa}e${Number(exponent)}`.replaceAll("-", MINUS);
  }
  const places = Math.max(0, digits - 1 - (value ? Math.floor(Math.log10(size)) : 0));
  let text = grouped(value.toFixed(places));
  if (trim && text.includes(".")) text = text.replace(/0+$/, "").replace(/\.$/, "");
  return text.replace("-", MINUS);
}

/** An integer with its thousands grouped. */
export function whole(value) {
  return grouped(String(value)).replace("-", MINUS);
}

/** A share of one as a percentage. */
export function percent(share, digits = 3) {
  return `${decimal(100 * share, digits)}\u00a0%`;
}

function grouped(text) {
  const [before, after] = text.split(".");
  const with_commas = before.replace(/\B(?=(\d{3})+(?!\d))/g, ",");
  return after === undefined ? with_commas : `${with_commas}.${after}`;
}
