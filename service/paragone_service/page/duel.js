// One pair: the probability as a bar, what it means in words, and what else is known of it.

import { el, freshId, letter, written } from "./dom.js";

/** Return `{element, choose}`: the bar of a pair, and a function that puts another pair into it.
 *
 * `notes(first, second)` returns elements that belong under the bar.
 */
export function duel(matrix, first, second, { calibrated }, notes) {
  const known = matrix.map((_, index) => index).filter((index) => matrix[index][index] !== null);
  const fields = [chooser("First response", known, first), chooser("Second response", known, second)];
  const bar = el("div", { class: "duel-bar" });
  const words = el("p", { class: "soft small" });
  const more = el("div", { class: "notes" });
  const draw = () => {
    const [a, b] = fields.map((field) => Number(field.value));
    const probability = a === b ? 0.5 : matrix[a][b];
    more.replaceChildren(...notes(a, b));
    bar.hidden = a === b || probability === null;
    if (bar.hidden) {
      words.textContent = a === b ? "Choose two different responses." : "This pair has no answer.";
      return;
    }
    bar.style.setProperty("--p", probability);
    bar.replaceChildren(
      el("span", { class: "side first" }, el("b", {}, letter(a)), ` ${written(probability)}`),
      el("span", { class: "side second" }, `${written(1 - probability)} `, el("b", {}, letter(b))),
    );
    words.textContent = meaning(probability, letter(a), letter(b), calibrated);
  };
  for (const field of fields) field.addEventListener("change", draw);
  draw();
  const choosers = known.length > 2 ? el("div", { class: "row duel-choice" }, fields[0], "against", fields[1]) : null;
  return {
    element: el("section", { class: "duel", "aria-label": "One pair" }, choosers, bar, words, more),
    choose(a, b) {
      fields[0].value = a;
      fields[1].value = b;
      draw();
    },
  };
}

function chooser(label, indices, chosen) {
  const field = el("select", { "aria-label": label, id: freshId("side") }, ...indices.map((index) => el("option", { value: index }, letter(index))));
  field.value = chosen;
  return field;
}

/** Return what a probability says, as a sentence. A frequency is read from a calibrated one alone. */
export function meaning(probability, first, second, calibrated) {
  if (probability === 0.5) return `The model prefers neither ${first} nor ${second}.`;
  const [better, worse, lead] = probability > 0.5 ? [first, second, probability] : [second, first, 1 - probability];
  if (!calibrated) {
    return `The model prefers ${better} to ${worse} with probability ${written(lead)}. It was not calibrated on held-out judgements: read the number as a strength, not as a frequency.`;
  }
  const often = lead > 0.995 ? "practically always" : `about ${Math.round(100 * lead)} times in 100`;
  return `Expect ${better} to be preferred to ${worse} ${often}. The model's probabilities were calibrated on held-out judgements.`;
}
