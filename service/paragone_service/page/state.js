// What is being asked, and its way into the address and back. It stands in the fragment, which no browser sends to a
// server, so that a link carries texts past every log. The key is no part of it.

export const MIN_RESPONSES = 2;
export const MAX_RESPONSES = 16;
export const MAX_CRITERIA = 16;
const MAX_TURNS = 32;
const ROLES = ["system", "user", "assistant"];

/** Return a question in which nothing is written yet. */
export function blank() {
  const turns = [{ role: "user", content: "" }];
  return {
    model: "", second: "", turns, principle: "", criteria: [], comparisons: "all", circles: false,
    responses: ["", ""], weights: null, skew: null,
  };
}

/** Return whether nothing is written in a question. */
export function isBlank({ turns, responses }) {
  return turns.every((turn) => !turn.content.trim()) && responses.every((one) => !one.trim());
}

/** Return the prompt as a request has it: a text, or messages where there are several turns. */
export function promptOf(question) {
  const [first] = question.turns;
  return question.turns.length === 1 && first.role === "user" ? first.content : question.turns;
}

/** Return what a model can be told to judge by of what a question says: `{principle}`, `{criteria}` or nothing. */
export function ruleOf({ principle, criteria }, { judged_by: takes = [] }) {
  if (criteria.length) return takes.includes("criteria") ? { criteria } : {};
  return principle && takes.includes("principle") ? { principle } : {};
}

/** Return what was asked in one request to the tournaments route; `model` is what the service says of it. */
export function requestOf(question, model) {
  const group = { prompt: promptOf(question), ...ruleOf(question, model), responses: question.responses };
  const reasons = model.judged_by?.includes("criteria"); // a judge, which can say why
  const request = { model: model.id, groups: [group], return: reasons ? ["matrix", "rationale"] : ["matrix"], on_error: "report" };
  if (question.comparisons !== "all" && readsPairs(model)) {
    request.comparisons = question.comparisons;
    if (question.circles) request.fit = "general-preference";
  }
  if (question.weights && model.id === question.model) request.weights = question.weights;
  if (question.skew !== null && model.id === question.model) request.skew_weight = question.skew;
  return request;
}

/** Return whether each pair has a cost of its own for a model. */
export function readsPairs({ kind }) {
  return kind === "judge" || kind === "pairwise" || kind === "ensemble";
}

/** Return `{view, question}` of an address's fragment; `problem` is a sentence where it cannot be read. */
export function readFragment(hash) {
  const [view, packed] = hash.replace(/^#/, "").split("=", 2);
  if (!packed) return { view, question: null, problem: null };
  try {
    return { view, question: checked(JSON.parse(unpacked(packed))), problem: null };
  } catch {
    return { view, question: null, problem: "The link is damaged: a part of it is missing, so its question could not be read." };
  }
}

/** Return the fragment that carries a question. */
export function fragmentOf(view, question) {
  return `#${view}=${pack(JSON.stringify(question))}`;
}

function pack(text) {
  let binary = "";
  for (const byte of new TextEncoder().encode(text)) binary += String.fromCharCode(byte);
  return btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

function unpacked(text) {
  const binary = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  const bytes = Uint8Array.from(binary, (character) => character.charCodeAt(0));
  return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
}

const PLAN = /^(all|circular|bracket|budget:[1-9][0-9]{0,8})$/;

function text(one) {
  if (typeof one !== "string") throw new TypeError("not a text");
  return one;
}

function number(one) {
  if (typeof one !== "number" || !Number.isFinite(one)) throw new TypeError("not a number");
  return one;
}

function plan(name) {
  if (!PLAN.test(text(name))) throw new RangeError("comparisons");
  return name;
}

function criteriaOf(list) {
  if (!Array.isArray(list) || list.length > MAX_CRITERIA) throw new RangeError("criteria");
  return list.map((one) => ({ name: text(one.name), text: text(one.text), weight: number(one.weight) }));
}

// Anybody can write a link: what it holds is taken apart field by field, and what is no question is refused.
function checked(value) {
  const { turns, responses } = value;
  if (!Array.isArray(turns) || turns.length < 1 || turns.length > MAX_TURNS) throw new RangeError("turns");
  if (!Array.isArray(responses) || responses.length < MIN_RESPONSES || responses.length > MAX_RESPONSES) {
    throw new RangeError("responses");
  }
  return {
    model: text(value.model ?? ""),
    second: text(value.second ?? ""),
    turns: turns.map((turn) => {
      if (!ROLES.includes(turn.role)) throw new RangeError("role");
      return { role: turn.role, content: text(turn.content) };
    }),
    principle: text(value.principle ?? ""),
    criteria: criteriaOf(value.criteria ?? []),
    comparisons: plan(value.comparisons ?? "all"),
    circles: value.circles === true,
    responses: responses.map(text),
    weights: value.weights
      ? Object.fromEntries(Object.entries(value.weights).map(([name, weight]) => [name, number(weight)]))
      : null,
    skew: value.skew === null || value.skew === undefined ? null : number(value.skew),
  };
}

export { MAX_TURNS, ROLES };
