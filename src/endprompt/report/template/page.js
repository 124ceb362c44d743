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
      const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const absent = row => row.cells[column].classList.contains("absent");
      const order = (a, b) => absent(a) - absent(b) ||
        (up ? 1 : -1) * key(a).localeCompare(key(b), "en", {numeric: true});
      const byNumber = (a, b) => absent(a) - absent(b) || (up ? 1 : -1) * (key(a) - key(b));
      const rows = [...body.rows];
      const numbers = rows.every(row => absent(row) || "value" in row.cells[column].dataset);
      body.append(...rows.sort(numbers ? byNumber : order));
    });
  });
}
const closed = [];
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details:not([open])")) { one.open = true; closed.push(one); }
});
addEventListener("afterprint", () => { for (const one of closed.splice(0)) one.open = false; });
