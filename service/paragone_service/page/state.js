// What is being asked, and its way into the address and back. It stands in the fragment, which no browser sends to a
// server, so that a link carries texts past every log. The key is no part of it.

export const MIN_RESPONSES = 2;
export const MAX_RESPONSES = 16;
const MAX_TURNS = 32;
const ROLES = ["system", "user", "assistant"];

/** Return a question in which nothing is written yet. */
export function blank() {
  const turns = [{ role: "user", content: "" }];
  return { model: "", second: "", turns, principle: "", responses: ["", ""], weights: null, skew: null };
}

/** Return the prompt as a request has it: a text, or messages where there are several turns. */
export function promptOf(question) {
  const [first] = question.turns;
  return question.turns.length === 1 && first.role === "user" ? first.content : question.turns;
}

/** Return what was asked in one request to the tournaments route. */
export function requestOf(question, model = question.model) {
  const group = { prompt: promptOf(question), responses: question.responses };
  if (question.principle) group.principle = question.principle;
  const request = { model, groups: [group], return: ["matrix"], on_error: "report" };
  if (question.weights && model === question.model) request.weights = question.weights;
  if (question.skew !== null && model === question.model) request.skew_weight = question.skew;
  return request;
}

/** Return `{view, question}` of an address's fragment; `problem` is a sentence where it cannot be read. */
export function readFragment(hash) {
  const [view, packed] = hash.replace(/^#/, "").split("=", 2);
  if (!packed) return { view, question: null, problem: null };
  try {
    return { view, question: checked(JSON.parse(unpacked(packed))), problem: null };
  } catch {
    return { view, question: null, problem: "The link is damaged: part of it was lost. The page starts afresh." };
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

// Anybody can write a link: what it holds is taken apart field by field, and what is no question is refused.
function checked(value) {
  const text = (one) => {
    if (typeof one !== "string") throw new TypeError("not a text");
    return one;
  };
  const number = (one) => {
    if (typeof one !== "number" || !Number.isFinite(one)) throw new TypeError("not a number");
    return one;
  };
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
    responses: responses.map(text),
    weights: value.weights
      ? Object.fromEntries(Object.entries(value.weights).map(([name, weight]) => [name, number(weight)]))
      : null,
    skew: value.skew === null || value.skew === undefined ? null : number(value.skew),
  };
}

export { MAX_TURNS, ROLES };
