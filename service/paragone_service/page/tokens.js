// What exactly the model sees of a response and its prompt: the tokens, where the prompt ends, where the model's
// numbers are read, and what was cut.

import { post, inWords } from "./api.js";
import { count, el, freshId, letter } from "./dom.js";
import { promptOf, ruleOf } from "./state.js";

const MOST = 2000;

/** Return a folded section that asks the service when it is opened. */
export function tokenSection(question, model) {
  const id = freshId("tokens");
  const choice = el("select", { id }, ...question.responses.map((_, index) => el("option", { value: index }, letter(index))));
  const content = el("div", { class: "tokens", "aria-live": "polite" });
  const prompt = promptOf(question);
  const responses = [...question.responses];
  const rule = ruleOf(question, model);

  async function load() {
    const response = responses[Number(choice.value)];
    content.replaceChildren(el("p", { class: "soft small" }, "Loading…"));
    try {
      const item = { prompt, response, ...rule };
      const { answer } = await post("v1/tokens", { model: model.id, items: [item], return: ["pieces"] });
      content.replaceChildren(...shown(answer.tokens[0]));
    } catch (error) {
      content.replaceChildren(el("p", { class: "problem" }, inWords(error)));
    }
  }

  choice.addEventListener("change", load);
  const details = el(
    "details",
    { class: "folded" },
    el("summary", {}, "What the model sees"),
    el("div", { class: "row" }, el("label", { for: id }, "Response"), choice),
    content,
  );
  details.addEventListener("toggle", () => {
    if (details.open && !content.hasChildNodes()) load();
  });
  return details;
}

function shown(reading) {
  const { pieces, token_ids: ids, reads, prompt_length: end } = reading;
  const read = new Set(reads.length === 1 && reads[0][1] - reads[0][0] > 1 ? [] : reads.flatMap(([from, to]) => range(from, to)));
  const words = [
    `${count(ids.length, "token")}, ${end} of them from the prompt`,
    read.size ? `. The score is read at the highlighted ${read.size === 1 ? "token" : "tokens"}.` : ". The score is read from the mean of all tokens.",
  ];
  if (reading.shown === false) words.push(" The chat template left out some of the words, so the model does not see them.");
  const parts = [el("p", { class: "soft small" }, ...words)];
  const cut = cutMark(reading);
  if (cut) parts.push(cut);
  const tokens = pieces.slice(0, MOST).map((piece, at) =>
    el(
      "span",
      { class: `token${at < end ? " asked" : ""}${read.has(at) ? " read" : ""}`, title: `token ${ids[at]}, position ${at}` },
      visible(piece),
    ),
  );
  parts.push(el("p", { class: "token-list" }, ...tokens.flatMap((token, at) => (at === end && at > 0 ? [el("span", { class: "border", title: "end of the prompt" }), token] : [token]))));
  if (ids.length > MOST) parts.push(el("p", { class: "soft small" }, `Only the first ${count(MOST, "token")} are shown.`));
  return parts;
}

function cutMark({ truncated_tokens: tokens = 0, truncated_messages: messages = 0 }) {
  if (!tokens) return null;
  const whole = messages ? ` (${count(messages, "whole message")} among them)` : "";
  return el("p", { class: "cut" }, `✂ ${count(tokens, "token")}${whole} cut here: the conversation is longer than the model can read.`);
}

function range(from, to) {
  return Array.from({ length: to - from }, (_, at) => from + at);
}

function visible(piece) {
  return piece.replaceAll("\n", "⏎") || "∅";
}
