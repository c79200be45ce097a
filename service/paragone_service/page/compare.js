// The view that asks a question and shows the answer.

import { post, inWords, ApiError } from "./api.js";
import { duel } from "./duel.js";
import { el, letter, listed, written } from "./dom.js";
import { heatmap } from "./heatmap.js";
import { questionForm } from "./question.js";
import { blank, fragmentOf, requestOf } from "./state.js";
import { groupsOf, ringOf } from "./table.js";

export const compare = {
  id: "compare",
  title: "Compare",
  open(root, context, asked) {
    const question = asked ?? blank();
    const results = el("section", { class: "results", "aria-label": "Answer" });
    const form = questionForm(question, context.models, {
      changed: () => results.classList.add("stale"),
      submitted: ask,
    });
    root.append(form.element, results);
    if (asked) ask();

    async function ask() {
      form.busy(true);
      context.keepAddress(fragmentOf("compare", question));
      try {
        const { answer } = await post("v1/tournaments", requestOf(question));
        show(answer);
      } catch (error) {
        if (error instanceof ApiError && error.wantsKey) context.askForKey(ask);
        fail(error);
      } finally {
        form.busy(false);
        results.classList.remove("stale");
      }
    }

    function fail(error) {
      const again = error instanceof ApiError && error.passes ? el("button", { type: "button", onclick: ask }, "Try again") : null;
      results.replaceChildren(el("p", { class: "problem", role: "alert" }, inWords(error), " ", again));
    }

    function show(answer) {
      const [tournament] = answer.tournaments;
      if (tournament.error) {
        results.replaceChildren(el("p", { class: "problem", role: "alert" }, tournament.error.message));
        return;
      }
      for (const error of tournament.errors ?? []) form.mark(error.response, error.message);
      const { matrix, ranking } = tournament;
      const said = headline(tournament);
      const pair = duel(matrix, ranking[0] ?? 0, ranking[1] ?? 1, answer);
      results.replaceChildren(
        el("h2", { class: "headline" }, said),
        pair.element,
        el("div", { class: "scroll" }, heatmap(matrix, question.responses, ranking, pair.choose)),
      );
      context.announce(said);
    }
  },
};

/** Return the result of a tournament as a sentence. */
export function headline({ matrix, ranking, condorcet_winner: winner }) {
  if (ranking.length < 2) return "There is nothing to compare.";
  if (ranking.length === 2) {
    const [first, second] = ranking;
    const probability = matrix[first][second];
    if (probability === 0.5) return `${letter(first)} and ${letter(second)} are level.`;
    return `${letter(first)} is preferred, with probability ${written(probability)}.`;
  }
  if (winner !== null) return `${letter(winner)} beats every other response.`;
  const [top] = groupsOf(matrix);
  const ring = ringOf(top, matrix);
  const circle = ring.every((one, at) => matrix[one][ring[(at + 1) % ring.length]] > 0.5);
  if (ring.length < 3 || !circle) return `No response beats all others: ${listed(top.map(letter))} are level.`;
  if (ring.length > 4) return `No response is best: ${listed(ring.map(letter))} beat one another in a circle.`;
  const wins = ring.map((one, at) => `${letter(one)} beats ${letter(ring[(at + 1) % ring.length])}`);
  return `No response is best: ${listed(wins)}.`;
}
