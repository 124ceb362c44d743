"use strict";
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const number = row => row.cells[column].dataset.value, text = row => row.cells[column].textContent;
      const rows = [...body.rows], none = row => number(row) === undefined;
      const byNumber = (a, b) => none(a) - none(b) || (up ? 1 : -1) * (number(a) - number(b) || 0);
      const byText = (a, b) => (up ? 1 : -1) * text(a).localeCompare(text(b), "en", {numeric: true});
      body.append(...rows.sort(rows.every(none) ? byText : byNumber));
    });
  });
}
const closed = [];
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details:not([open])")) { one.open = true; closed.push(one); }
});
addEventListener("afterprint", () => { for (const one of closed.splice(0)) one.open = false; });
