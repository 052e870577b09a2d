// A click on a column's head sorts the table by it; a page without scripts is as complete.
for (const head of document.querySelectorAll("table.sorts thead th")) {
  const button = document.createElement("button");
  button.append(...head.childNodes);
  head.append(button);
  button.onclick = () => {
    const table = head.closest("table"), body = table.tBodies[0];
    const way = head.ariaSort === "ascending" ? -1 : 1;
    const value = (row) => {
      const text = row.cells[head.cellIndex].textContent.trim();
      const number = parseFloat(text.replaceAll(",", ""));
      return /^[-+]?[\d,.]+( ?%)?$/.test(text) ? number : text === "–" ? -Infinity : text;
    };
    const order = (a, b) => (typeof a === "number" && typeof b === "number")
      ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
    const rows = [...body.rows].map((row) => [value(row), row]);
    for (const [, row] of rows.sort((a, b) => way * order(a[0], b[0]))) body.append(row);
    for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.ariaSort = way > 0 ? "ascending" : "descending";
  };
}
