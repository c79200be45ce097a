// Everything that the service is asked for one question: each model's tournament, and what is shown beside it.

import { ApiError, get, post } from "./api.js";
import { readsPairs, promptOf, requestOf, ruleOf } from "./state.js";

/** Return what the first and the second model answered, each as `{model, tournament, answer, timings}`, or with `error`
 * where it refused; the first one's also with `rewards` for its sliders and `members` of an ensemble.
 *
 * Throws what ended the first model's request where nobody answered.
 */
export async function answersTo(question, models, signal) {
  const named = (name) => models.find((model) => model.id === name);
  const asked = [named(question.model), ...(question.second ? [named(question.second)] : [])];
  // Each for itself: what one model refuses, the other one may answer.
  const [ours, theirs = null] = await Promise.all(asked.map((model) => one(question, model, signal)));
  if (ours.error && !theirs?.tournament && !weighable(ours)) throw ours.error;
  if (!ours.error || weighable(ours)) ours.rewards = await ratings(question, ours.model, signal);
  if (!ours.error) ours.members = await members(question, ours.model, models, signal);
  return { ours, theirs };
}

/** Return whether an error only says that a model's ratings have no weights: sliders can give them. */
export function weighable({ error, model }) {
  return error?.code === "preferences_unavailable" && model.attributes.length > 0;
}

async function one(question, model, signal) {
  try {
    const { answer, timings } = await post("v1/tournaments", requestOf(question, model), { signal });
    const [tournament] = answer.tournaments;
    if (tournament.error) return { model, error: new ApiError(tournament.error.code, tournament.error.message, { status: 200, detail: tournament.error }) };
    return { model: await nowKnown(model, signal), tournament, answer, timings };
  } catch (error) {
    if (error.name === "AbortError" || error.wantsKey) throw error;
    return { model, error };
  }
}

// How a judge's verdicts are read is known from its first answer on.
async function nowKnown(model, signal) {
  return model.numerics.read === "auto" ? (await get(`v1/models/${encodeURIComponent(model.id)}`, { signal })).answer : model;
}

// What the sliders need. Cached by now, so that it costs no forward pass.
async function ratings(question, model, signal) {
  if (!model.attributes.length && model.kind !== "hybrid") return null;
  const prompt = promptOf(question);
  const items = question.responses.map((response) => ({ prompt, response, ...ruleOf(question, model) }));
  const { answer } = await post("v1/rewards", { model: model.id, items, return: ["representation"], on_error: "report" }, { signal });
  return answer.rewards;
}

// What each member of an ensemble says by itself. Known to the server where the ensemble has just asked it; one that
// was asked about some pairs alone is not asked about the others for this, if each of them has a cost.
async function members(question, { ensemble }, models, signal) {
  if (!ensemble) return null;
  const asksAll = ensemble.margin === null && question.comparisons === "all";
  return Promise.all(ensemble.members.map(async (id, at) => {
    const weight = ensemble.weights[at];
    const model = models.find((each) => each.id === id);
    if (!model) return { id, weight, why: "not hosted any more" };
    if (readsPairs(model) && !asksAll) return { id, weight, why: "not asked separately: each pair costs a call" };
    const { tournament, error } = await one({ ...question, weights: null, skew: null }, model, signal);
    return { id, weight, tournament, why: error?.message };
  }));
}
