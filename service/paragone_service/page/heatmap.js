// The table of probabilities as a heat map: a real table with its numbers in the cells, blue where the row wins.

import { el, letter, shortened, written } from "./dom.js";

const SHADES = 20;

/** Return the table; `order` is the order of its rows and columns, `choose(first, second)` is called for a cell, and
 * `mark(first, second)` says what is special about one: "inferred", "abstained" or nothing. */
export function heatmap(matrix, responses, order, choose, mark = () => null) {
  const head = el("tr", {}, el("td"), ...order.map((column) => el("th", { scope: "col", title: shortened(responses[column], 200) }, letter(column))));
  const rows = order.map((row) =>
    el(
      "tr",
      {},
      el("th", { scope: "row", title: shortened(responses[row], 200) }, letter(row)),
      ...order.map((column) => cell(matrix[row][column], row, column, mark(row, column))),
    ),
  );
  const table = el(
    "table",
    { class: order.length > 12 ? "heat dense" : "heat" },
    el("caption", { class: "unseen" }, "Probability that the response of the row is preferred to that of the column"),
    el("thead", {}, head),
    el("tbody", {}, ...rows),
  );
  table.addEventListener("click", (event) => {
    const at = event.target.closest("td[data-row]");
    if (at) choose(Number(at.dataset.row), Number(at.dataset.column));
  });
  return table;
}

function cell(probability, row, column, marked) {
  if (row === column) return el("td", { class: "self" }, el("span", { class: "unseen" }, "itself"));
  if (probability === null) return el("td", { class: "self" }, "–");
  // The square root keeps small leads visible beside certain ones. Twenty shades, as classes: cells of one class share
  // their style, and a table of a thousand cells is drawn in half the time.
  const shade = Math.round(Math.sqrt(Math.abs(probability - 0.5) * 2) * SHADES);
  return el(
    "td",
    {
      class: `${probability === 0.5 ? "tie" : `${probability > 0.5 ? "win" : "loss"} lead-${shade}`}${marked ? ` ${marked}` : ""}`,
      "data-row": row,
      "data-column": column,
      title: `${letter(row)} over ${letter(column)}${marked ? ` (${marked})` : ""}: ${probability.toFixed(4)}`,
    },
    written(probability),
  );
}
