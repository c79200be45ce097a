// The result of a tournament in a sentence.

import { sentence } from "./api.js";
import { count, letter, listed, written } from "./dom.js";
import { groupsOf, probability, ringOf } from "./table.js";

/** Return the best responses in a ring where each beats the next one, or null where they do not run in a circle. */
export function circleOf(matrix) {
  const [top] = groupsOf(matrix);
  const ring = ringOf(top, matrix);
  const runs = ring.length > 2 && ring.every((one, at) => matrix[one][ring[(at + 1) % ring.length]] > 0.5);
  return runs ? ring : null;
}

/** Return the result of a tournament as a sentence. */
export function headline(tournament) {
  const { matrix, ranking, condorcet_winner: winner } = tournament;
  if (ranking.length < 2) return "Only one response could be scored, so there is nothing to compare.";
  if (ranking.length === 2) {
    const [first, second] = ranking;
    const lead = matrix[first][second];
    if (abstains(tournament, first, second)) return `No verdict on ${letter(first)} and ${letter(second)}: the model abstains.`;
    if (lead === 0.5) return `${letter(first)} and ${letter(second)} are tied.`;
    return `${letter(first)} is preferred, with probability ${written(lead)}.`;
  }
  if (winner !== null) return `${letter(winner)} beats every other response.`;
  const circle = circleOf(matrix);
  if (!circle) return `No response beats all others: ${listed(groupsOf(matrix)[0].map(letter))} are tied.`;
  if (circle.length > 4) return `No response is best: ${listed(circle.map(letter))} beat each other in a circle.`;
  const wins = circle.map((one, at) => `${letter(one)} beats ${letter(circle[(at + 1) % circle.length])}`);
  return `No response is best: ${listed(wins)}.`;
}

/** Return whether the model abstains on a pair. */
export function abstains({ abstained }, first, second) {
  return pairIn(abstained, first, second) !== null;
}

/** Return whether the number of a pair was inferred from those of other pairs. */
export function inferred({ compared, fit }, first, second) {
  return Boolean(fit) && first !== second && pairIn(compared, first, second) === null;
}

/** Return on how many of its pairs a model abstained, and why, as sentences; empty where it answered all. */
export function abstention(tournament, { ensemble }) {
  const pairs = tournament.abstained?.length;
  if (!pairs) return "";
  const asked = count(tournament.compared?.length ?? pairs, "pair");
  const edge = probability(ensemble.abstain);
  return `The model abstains on ${pairs} of ${asked}: it gives no verdict where its probability is between ${written(1 - edge)} and ${written(edge)}.`;
}

/** Return which pairs have no answer of their own, and why, as a sentence; empty where all have one. */
export function failures({ errors, fit }) {
  const failed = (errors ?? []).filter(({ opponent }) => Number.isInteger(opponent));
  if (!failed.length) return "";
  const pairs = listed(failed.map(({ response, opponent }) => `${letter(response)} and ${letter(opponent)}`));
  return `No answer on ${pairs}${fit ? ", so that is inferred" : ""}. ${sentence(failed[0].message)}`;
}

function pairIn(pairs, first, second) {
  return pairs?.find(([one, other]) => (one === first && other === second) || (one === second && other === first)) ?? null;
}
