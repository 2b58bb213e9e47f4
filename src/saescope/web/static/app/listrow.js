// One row of the list of features, as `features.html` draws it.
import { h, visible } from "./dom.js";
import { decimal, percent, whole } from "./numbers.js";
import { valueOf } from "./rows.js";

/** A number of a kind as it stands in a column. */
export function writtenAs(value, kind) {
  if (value === null || value === undefined) return "\u2013";
  if (kind === "percent") return percent(value);
  return kind === "whole" ? whole(value) : decimal(value, 3, { trim: false });
}

function barWidth(density) {
  if (!(density > 0)) return "0.0%";
  return `${(100 * Math.min(1, Math.max(0, 1 + Math.log10(density) / 6))).toFixed(1)}%`;
}

function meaning(row, href) {
  const parts = [];
  const { label, explanation } = row;
  if (label) parts.push(h("a", { class: "label", href, tabindex: -1 }, visible(label.text)));
  else if (!explanation) parts.push(h("span", { class: "unlabelled" }, row.num_firings === 0 ? "dead" : "unlabelled"));
  if (explanation) {
    parts.push(h("a", { class: "said", href, tabindex: -1 }, visible(explanation.text)));
    if (typeof explanation.score === "number") {
      const title = `Score of the explanation: ${explanation.score}`;
      parts.push(h("span", { class: "chip", title }, writtenAs(explanation.score, "decimal")));
    }
  }
  for (const tag of row.tags ?? []) parts.push(h("span", { class: "chip tag" }, visible(tag)));
  return parts;
}

/**
 * A row of the table. `look` has: `columns`, [key, kind] of each number; `sort`, the key of the sorted column; `hasStar`; and
 * `address(index)`.
 */
export function drawnRow(row, look) {
  const href = row.href ?? look.address(row.index);
  const cells = [h("th", { scope: "row", class: "c-index" }, h("a", { href }, row.index))];
  if (look.hasStar) {
    const on = Boolean(row.is_bookmarked);
    const said = { "aria-pressed": on ? "true" : "false", "aria-label": `Bookmark feature ${row.index}` };
    cells.push(h("td", { class: "c-star" }, h("button", { type: "button", class: "star", ...said }, on ? "★" : "☆")));
  }
  cells.push(h("td", { class: "c-label" }, h("div", {}, meaning(row, href))));
  for (const [key, kind] of look.columns) {
    const cell = h("td", { class: `n c-${key}${key === look.sort || key === "similarity" ? " sorted" : ""}` });
    if (key === "density") cell.append(h("span", { class: "amount", style: { "--w": barWidth(row.density) } }));
    cell.append(writtenAs(valueOf(row, key), kind));
    cells.push(cell);
  }
  return h("tr", { "data-index": row.index }, cells);
}

/** A row of which only the index is known, or not even that. */
export function waitingRow(index, look) {
  const known = index !== undefined;
  const first = known ? h("a", { href: look.address(index) }, index) : "…";
  const rest = Array.from({ length: look.columns.length + (look.hasStar ? 1 : 0) }, () => h("td"));
  const cells = [h("th", { scope: "row", class: "c-index" }, first), ...(look.hasStar ? [rest.shift()] : [])];
  const label = h("td", { class: "c-label" }, h("div", {}, h("span", { class: "unlabelled" }, "…")));
  return h("tr", { class: "waiting", "data-index": known ? index : null }, cells, label, rest);
}
