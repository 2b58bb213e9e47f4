// Features of two dictionaries matched by their decoder rows: asked for on demand, shown in three tables that grow.
import { get, query } from "./api.js";
import { h, island, visible } from "./dom.js";
import { decimal, percent, whole } from "./numbers.js";

const MATCH_STEP = 50; // rows that a table grows by
const MATCH_TABS = [
  { key: "pairs", words: "In both", columns: ["Cosine", "A", "B", ""] },
  { key: "only_in_a", words: "Only in A", columns: ["Density", "A", "Nearest in B", "Cosine"] },
  { key: "only_in_b", words: "Only in B", columns: ["Density", "B", "Nearest in A", "Cosine"] },
];

/** `<sae-match>`: a button that asks, and what the answer holds. */
export class SaeMatch extends HTMLElement {
  connectedCallback() {
    this.data = island("match");
    this.button = this.querySelector("[data-start]");
    if (!this.data || !this.button) return;
    this.button.hidden = false;
    this.button.addEventListener("click", () => this.start());
  }

  say(words) {
    this.querySelector("[data-says]").textContent = words;
  }

  ask(offset) {
    const { api, a, b } = this.data;
    return get(api, { a, b, offset, limit: MATCH_STEP });
  }

  async start() {
    this.button.disabled = true;
    const began = Date.now();
    const ticking = setInterval(() => {
      this.say(`Comparing all rows with all others, ${Math.round((Date.now() - began) / 1000)} s so far …`);
    }, 1000);
    this.say("Comparing all rows with all others …");
    try {
      const answer = await this.ask(0);
      this.button.hidden = true;
      this.say(`Cosines of ${decimal(answer.bar, 3)} and above count as a match.`);
      this.show(answer);
    } catch (error) {
      this.say(error.message);
      this.button.disabled = false;
    } finally {
      clearInterval(ticking);
    }
  }

  show(answer) {
    const { counts } = answer;
    const buttons = MATCH_TABS.map(({ key, words }) =>
      h("button", { type: "button", onclick: () => this.choose(key) }, `${words}: ${whole(counts[key])}`),
    );
    this.tabs = new Map(MATCH_TABS.map((tab, at) => [tab.key, { ...tab, button: buttons[at], total: counts[tab.key] }]));
    const rest = ["split", "near", "dead"].filter((kind) => counts[kind]);
    const named = { split: "parts of a feature of A", near: "second copies", dead: "dead" };
    const others = rest.map((kind) => `${whole(counts[kind])} ${named[kind]}`).join(", ");
    for (const tab of this.tabs.values()) {
      tab.rows = h("tbody", {});
      tab.more = h("button", { type: "button", onclick: () => this.grow(tab) });
      const heads = tab.columns.map((words) => {
        const isNumber = words === "Cosine" || words === "Density";
        return h("th", { scope: "col", class: isNumber && "n" }, words || h("span", { class: "unseen" }, "Compare"));
      });
      const caption = h("caption", { class: "unseen" }, `${tab.words}: features and how near they are`);
      const table = h("table", { class: "match-table" }, caption, h("thead", {}, h("tr", {}, heads)), tab.rows);
      tab.table = h("div", { class: "scroll" }, table);
      tab.shown = 0;
      this.fill(tab, answer);
    }
    const place = this.querySelector("[data-found]");
    place.replaceChildren(h("div", { class: "match-tabs", role: "group", "aria-label": "Which features" }, buttons));
    if (others) place.append(h("p", { class: "quiet" }, `Of the other features of B: ${others}.`));
    place.append(...[...this.tabs.values()].flatMap((tab) => [tab.table, tab.more]));
    this.choose(counts.pairs ? "pairs" : "only_in_a");
  }

  choose(key) {
    for (const tab of this.tabs.values()) {
      const isChosen = tab.key === key;
      tab.button.setAttribute("aria-pressed", isChosen);
      tab.table.hidden = !isChosen;
      tab.more.hidden = !isChosen || tab.shown >= tab.total;
    }
  }

  async grow(tab) {
    tab.more.disabled = true;
    try {
      this.fill(tab, await this.ask(tab.shown));
    } catch (error) {
      this.say(error.message);
    }
    tab.more.disabled = false;
    tab.more.hidden = tab.shown >= tab.total;
  }

  fill(tab, answer) {
    const isOfA = tab.key === "only_in_a";
    const make = (row) => (tab.key === "pairs" ? this.pair(row, answer) : this.lone(row, isOfA, answer));
    tab.rows.append(...answer[tab.key].map(make));
    tab.shown += answer[tab.key].length;
    tab.more.textContent = `Show more of ${whole(tab.total - tab.shown)}`;
    if (tab.total === 0) tab.rows.append(h("tr", {}, h("td", { colspan: tab.columns.length }, "None")));
  }

  pair([a, b, cosine], answer) {
    const address = this.data.compare + query({ a: `${this.data.a}:${a}`, b: `${this.data.b}:${b}` });
    return h(
      "tr",
      {},
      h("td", { class: "n", title: cosine }, decimal(cosine, 3, { trim: false })),
      h("td", { "data-of": "A" }, this.named(0, a, answer.a)),
      h("td", { "data-of": "B" }, this.named(1, b, answer.b)),
      h("td", {}, h("a", { href: address, "aria-label": `Compare ${a} of A with ${b} of B` }, "compare")),
    );
  }

  lone([feature, nearest, cosine], isOfA, answer) {
    const [own, other] = isOfA ? [answer.a, answer.b] : [answer.b, answer.a];
    const [here, there] = isOfA ? [0, 1] : [1, 0];
    const density = own.densities[feature];
    return h(
      "tr",
      {},
      h("td", { class: "n", title: density }, density === undefined ? "–" : percent(density)),
      h("td", { "data-of": "AB"[here] }, this.named(here, feature, own)),
      h("td", { "data-of": `nearest in ${"AB"[there]}` }, this.named(there, nearest, other)),
      h("td", { class: "n", title: cosine }, decimal(cosine, 3, { trim: false })),
    );
  }

  named(side, feature, known) {
    const text = known.labels[feature];
    const label = h("span", { class: text ? "label" : "label unlabelled" }, text ? visible(text) : "unlabelled");
    return h("a", { href: this.data.addresses[side].replace("{index}", feature) }, h("span", { class: "index" }, feature), label);
  }
}
