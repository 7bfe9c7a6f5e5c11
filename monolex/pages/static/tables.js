"use strict";
// Tables are sorted by a click on a head (or Enter): down, up, as they were. Cells without a number come last.
for (const table of document.querySelectorAll("table:not(.list):not(.shares):not(.chances):not(.grid)")) {
  const heads = [...table.querySelectorAll("thead th")];
  const groups = [...table.tBodies].map((body) => [body, [...body.rows].filter((row) => !row.classList.contains("group"))]);
  if (groups.every(([, rows]) => rows.length < 2)) continue;
  const known = (row, column) => {
    const text = row.cells[column]?.firstChild?.textContent.trim() ?? "";
    const number = Number.parseFloat(text.replaceAll(",", "").replace("−", "-"));
    return Number.isNaN(number) ? text : number;
  };
  const order = (column, sign) => (a, b) => {
    const [x, y] = [known(a, column), known(b, column)];
    if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
    return sign * (typeof x === "number" ? x - y : x.localeCompare(y));
  };
  const sort = (head, column) => {
    const now = head.getAttribute("aria-sort");
    for (const other of heads) other.removeAttribute("aria-sort");
    const next = now === "descending" ? "ascending" : now === "ascending" ? null : "descending";
    if (next) head.setAttribute("aria-sort", next);
    for (const [body, rows] of groups) {
      body.append(...(next ? [...rows].sort(order(column, next === "ascending" ? 1 : -1)) : rows));
    }
  };
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    head.classList.add("sorts");
    head.addEventListener("click", () => sort(head, column));
    head.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        sort(head, column);
      }
    });
  });
}
