"use strict";
// Tables sort by the column whose head is pressed: rows without a value stay last, equal rows keep their order.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const first = [...body.rows];
  heads.forEach((head, at) => {
    const title = head.querySelector(".title");
    const button = document.createElement("button");
    button.type = "button";
    title.replaceWith(button);
    button.append(title);
    button.addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort") === "descending" || (!head.hasAttribute("aria-sort") && !head.classList.contains("n"));
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const value = (row) => row.cells[at].dataset.order;
      const numeric = head.classList.contains("n");
      const held = first.filter((row) => value(row) !== undefined);
      held.sort((a, b) => {
        const order = numeric ? Number(value(a)) - Number(value(b)) : value(a).localeCompare(value(b), "en", { numeric: true });
        return rising ? order : -order;
      });
      body.append(...held, ...first.filter((row) => value(row) === undefined));
    });
  });
}
