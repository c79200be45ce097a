// Two models on the same question: both orders beside each other, and the pairs on which they disagree.

import { count, el, freshId, letter, listed, shortened, svg, written } from "./dom.js";

const MOST_PAIRS = 12;
const STEP = 30;

/** Return the section; `names` are those of the two models, `tournaments` their answers. */
export function versus(names, tournaments) {
  const pairs = disagreements(tournaments);
  const apart = pairs.filter((pair) => pair.opposite);
  const said = apart.length
    ? `They disagree on ${apart.length} of ${count(pairs.length, "pair")}.`
    : "They agree on the winner of every pair.";
  return el(
    "section",
    { class: "versus", "aria-label": "Both models" },
    el("h2", {}, `${names[0]} and ${names[1]}`),
    el("p", {}, said),
    el("div", { class: "side-by-side" }, slopes(names, tournaments), pairTable(names, pairs.slice(0, MOST_PAIRS))),
    pairs.length > MOST_PAIRS ? el("p", { class: "soft small" }, `The ${MOST_PAIRS} pairs with the largest differences.`) : null,
  );
}

/** Return all pairs that both models answered, those with opposite winners first, then by how far apart they are. */
export function disagreements([ours, theirs]) {
  const pairs = [];
  for (let i = 0; i < ours.matrix.length; i += 1) {
    for (let j = i + 1; j < ours.matrix.length; j += 1) {
      const [a, b] = [ours.matrix[i][j], theirs.matrix[i][j]];
      if (a === null || b === null) continue;
      pairs.push({ first: i, second: j, probabilities: [a, b], opposite: (a - 0.5) * (b - 0.5) < 0 });
    }
  }
  const distance = ({ probabilities: [a, b] }) => Math.abs(a - b);
  return pairs.sort((x, y) => y.opposite - x.opposite || distance(y) - distance(x));
}

function pairTable(names, pairs) {
  const rows = pairs.map(({ first, second, probabilities, opposite }) =>
    el(
      "tr",
      { class: opposite ? "opposite" : null },
      el("th", { scope: "row" }, `${letter(first)} over ${letter(second)}`),
      ...probabilities.map((one) => el("td", { class: `bar ${one >= 0.5 ? "win" : "loss"}`, style: { "--p": one } }, written(one))),
      el("td", {}, opposite ? "disagree" : ""),
    ),
  );
  return el(
    "table",
    { class: "standing" },
    el("caption", { class: "unseen" }, "Probabilities of both models, pair by pair"),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Pair"), ...names.map((name) => el("th", { scope: "col" }, name)), el("td"))),
    el("tbody", {}, ...rows),
  );
}

function slopes(names, tournaments) {
  const [left, right] = tournaments.map(({ ranking }) => ranking);
  const height = 26 + STEP * Math.max(left.length, right.length);
  const y = (place) => 36 + STEP * place;
  const lines = left.filter((one) => right.includes(one)).map((one) => {
    const [from, to] = [left.indexOf(one), right.indexOf(one)];
    return svg("line", { class: from === to ? "slope" : "slope moved", x1: 36, y1: y(from), x2: 164, y2: y(to) });
  });
  const nodes = [left, right].flatMap((ranking, side) =>
    ranking.map((one, place) =>
      svg(
        "g",
        { class: "node" },
        svg("circle", { cx: side ? 180 : 20, cy: y(place), r: 12 }),
        svg("text", { x: side ? 180 : 20, y: y(place) }, letter(one)),
      ),
    ),
  );
  const words = names.map((name, side) => `${name}: ${listed(tournaments[side].ranking.map(letter))}`).join("; ");
  const id = freshId("slopes");
  return svg(
    "svg",
    { class: "graph", viewBox: `0 0 200 ${height}`, width: 200, height, role: "img", "aria-labelledby": id },
    svg("title", { id }, `Ranking by win rate. ${words}`),
    svg("text", { class: "label start", x: 4, y: 10 }, shortened(names[0], 14)),
    svg("text", { class: "label end", x: 196, y: 10 }, shortened(names[1], 14)),
    ...lines,
    ...nodes,
  );
}
