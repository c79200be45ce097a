// What an answer will cost, said before it is asked for, and what it did cost.

import { count, el } from "./dom.js";
import { readsPairs } from "./state.js";

/** Return how many pairs of K responses a plan asks about at most. */
export function pairsOf(plan, size) {
  const every = (size * (size - 1)) / 2;
  if (plan === "circular") return Math.min(size, every);
  if (plan === "bracket") return Math.min(Math.floor((3 * size) / 2) - 1, every);
  return plan.startsWith("budget:") ? Math.min(Number(plan.slice(7)), every) : every;
}

/** Return the judges that are asked when a model is: itself, or members of an ensemble. */
export function judgesOf(model, models) {
  if (model?.kind === "judge") return [model];
  const members = model?.ensemble?.members ?? [];
  return models.filter((one) => one.kind === "judge" && members.includes(one.id));
}

/** Return whether each pair costs a call or a pass for a model. */
export function costsPairs(model, models) {
  if (!model || !readsPairs(model)) return false;
  if (model.kind !== "ensemble") return true;
  return models.some((one) => one.kind !== "ensemble" && readsPairs(one) && model.ensemble.members.includes(one.id));
}

/** Return how many calls a judge is asked for at most, where none of its verdicts is known and each is readable. */
export function callsOf(judge, { responses, comparisons, criteria }, told) {
  const { votes, read, symmetrise } = judge.numerics;
  const size = responses.length;
  const rules = told && judge.judged_by?.includes("criteria") ? Math.max(1, criteria.length) : 1;
  const showings = read === "grades" ? Math.min(size, 2 * pairsOf(comparisons, size)) : pairsOf(comparisons, size) * (symmetrise === "none" ? 1 : 2);
  return showings * Number(votes) * rules;
}

/** Return in sentences what asking these models will cost; empty where it costs no calls to a judge. */
export function estimate(question, asked, models) {
  return asked
    .flatMap((model) =>
      judgesOf(model, models).map((judge) => {
        const calls = count(callsOf(judge, question, judge === model), "call");
        const { margin, members } = model.ensemble ?? {};
        const unsure = margin !== null && margin !== undefined && members[0] !== judge.id;
        return `Asks ${judge.id}: up to ${calls}${unsure ? `, where ${members[0]} is unsure` : ""}.`;
      }),
    )
    .map((sentence, at, all) => (at === all.length - 1 ? `${sentence} Known verdicts cost nothing; unreadable ones are asked for again.` : sentence))
    .join(" ");
}

/** Return what an answer cost, and who gave it. */
export function costs({ answer, timings }) {
  const { usage, model, fingerprint } = answer;
  const parts = [];
  if (usage.forward_responses || usage.cached_responses || usage.judge_calls === undefined) {
    parts.push(`${count(usage.forward_responses, "response")} computed (${count(usage.forward_tokens, "token")})`, `${usage.cached_responses} from the cache`);
  }
  if (usage.truncated) parts.push(`${count(usage.truncated, "prompt")} cut`);
  if (usage.not_shown) parts.push(`words left out of ${count(usage.not_shown, "conversation")} by the chat template`);
  if (usage.escalated) parts.push(`${count(usage.escalated, "pair")} passed on to the other members`);
  if (usage.judge_calls) parts.push(`${count(usage.judge_calls, "call")} to the judge (${count(usage.judge_tokens ?? 0, "token")})`);
  else if (usage.judge_calls === 0) parts.push("no call to the judge: all its verdicts were known");
  if (usage.judge_cost) parts.push(`cost ${usage.judge_cost.toPrecision(3)}`);
  const times = Object.entries(timings)
    .filter(([, milliseconds]) => milliseconds > 0)
    .map(([name, milliseconds]) => `${name} ${milliseconds < 10 ? milliseconds.toFixed(1) : Math.round(milliseconds)} ms`);
  return el(
    "p",
    { class: "costs soft small" },
    `${parts.join(" · ")} · ${times.join(", ")} · `,
    el("span", { title: `fingerprint ${fingerprint}` }, `${model} ${fingerprint.slice(0, 8)}`),
  );
}
