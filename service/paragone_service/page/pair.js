// What else is known of the pair in the bar: a judge's votes and reasons, members of an ensemble, or that it was inferred.

import { el, letter, scrolling } from "./dom.js";
import { abstains, inferred } from "./headline.js";
import { bar } from "./standing.js";
import { probability } from "./table.js";

const SHORT = 700;
const SHOWN = 4;
const FITS = { "bradley-terry": "a Bradley-Terry fit", "general-preference": "a general preference fit" };

/** Return what belongs under the bar of a pair: elements, none where there is no more to say. */
export function pairNotes({ tournament, model, members }, first, second) {
  if (!model || first === second) return [];
  return [
    inferred(tournament, first, second) ? note(`This pair was not compared. Its number is inferred from the other pairs, by ${FITS[tournament.fit]}.`) : null,
    abstains(tournament, first, second) ? note("The model abstains on this pair: its probability is too close to 0.50.") : null,
    membersOf(model, members, first, second),
    ...reasons(tournament, model, first, second),
  ].filter(Boolean);
}

function note(text) {
  return el("p", { class: "note small" }, text);
}

/** Return how many of a judge's votes a probability stands for: of `votes` all together, with half a vote for each side. */
export function votesFor(share, votes, temperature) {
  const untempered = probability(Math.log(share / (1 - share)) * temperature);
  return untempered * (votes + 1) - 0.5;
}

function reasons({ matrix, rationales }, model, first, second) {
  const found = rationales?.find((one) => [first, second].includes(one.first) && [first, second].includes(one.second));
  if (!found) return [];
  const name = (side) => letter(side === "first" ? found.first : found.second);
  const graded = model.numerics.read === "grades";
  const items = alternating(found.rationales).map(({ text, shown_first: side, criterion }) =>
    el("li", {},
      el("p", { class: "soft small" }, graded ? `On ${name(side)}` : `${name(side)} shown first`, criterion ? ` · ${criterion}` : ""),
      long(text)));
  const rest = items.slice(SHOWN);
  return [
    el("section", { class: "reasons", "aria-label": "Reasons" },
      el("h3", {}, `What ${model.id} said`),
      votes(found, matrix, model),
      graded ? null : el("p", { class: "soft small" }, "A letter or number in its words means the order in which it saw the two responses, not the letters on this page."),
      el("ul", {}, ...items.slice(0, SHOWN)),
      rest.length ? el("details", { class: "folded" }, el("summary", {}, `${rest.length} more`), el("ul", {}, ...rest)) : null),
  ];
}

// By turns of each criterion and order, so that the first ones are of different kinds.
function alternating(rationales) {
  const kinds = Object.values(Object.groupBy(rationales, ({ criterion, shown_first: side }) => JSON.stringify([criterion, side])));
  return rationales.flatMap((_, at) => kinds.map((kind) => kind[at])).filter(Boolean);
}

function votes({ first, second, rationales }, matrix, model) {
  if (model.numerics.read !== "votes" || rationales.some((one) => one.criterion)) return null;
  const all = rationales.length;
  const won = votesFor(matrix[first][second], all, model.temperature);
  const number = (value) => String(Number(value.toFixed(2)));
  return el("p", {}, `Votes: ${number(won)} for ${letter(first)}, ${number(all - won)} for ${letter(second)}.`);
}

function long(text) {
  if (text.length <= SHORT) return el("div", { class: "whole", dir: "auto" }, text);
  // The verdict stands at the end, so the end is what a long text is known by.
  return el("details", { class: "folded" },
    el("summary", { dir: "auto" }, `… ${text.slice(-SHORT).trim()}`),
    el("div", { class: "whole", dir: "auto" }, text));
}

function membersOf(model, members, first, second) {
  if (!members) return null;
  const rows = members.map(({ id, weight, tournament, why }) => {
    const share = tournament?.matrix?.[first]?.[second] ?? null;
    return el("tr", {},
      el("th", { scope: "row" }, id),
      el("td", {}, String(Number(weight.toPrecision(3)))),
      share === null ? el("td", { class: "soft" }, why ?? "no answer") : bar(share, share >= 0.5 ? "win" : "loss"));
  });
  const { pessimism } = model.ensemble;
  const known = members.map(({ tournament }) => tournament?.matrix?.[first]?.[second]).filter((one) => typeof one === "number");
  const sides = new Set(known.map((one) => Math.sign(one - 0.5)));
  const apart = known.length < 2 ? "" : sides.has(1) && sides.has(-1) ? "Its members disagree on this pair." : "Its members agree on this pair.";
  const moved = pessimism ? " Where members differ, the model moves their mean towards 0.50 (pessimism)." : "";
  return el("section", { class: "members", "aria-label": "Members" },
    el("h3", {}, `Members of ${model.id}`),
    apart || moved ? el("p", {}, `${apart}${moved}`.trim()) : null,
    scrolling("Table of members", el("table", { class: "standing" },
      el("caption", { class: "unseen" }, "What each member says of this pair"),
      el("thead", {}, el("tr", {}, ...["Member", "Weight", `${letter(first)} over ${letter(second)}`].map((one) => el("th", { scope: "col" }, one)))),
      el("tbody", {}, ...rows))));
}

/** Return the win rates of each response by each criterion, as a table. */
export function byCriterion({ criteria, ranking }) {
  const names = Object.keys(criteria);
  return el("table", { class: "standing ratings" },
    el("caption", { class: "unseen" }, "Win rate of each response by each criterion"),
    el("thead", {}, el("tr", {}, el("td"), ...names.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...ranking.map((index) =>
      el("tr", {}, el("th", { scope: "row" }, el("span", { class: "badge" }, letter(index))), ...names.map((name) => bar(criteria[name][index], "rating"))))));
}

