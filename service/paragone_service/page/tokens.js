// What exactly the model sees of a response and its prompt: the tokens, where the prompt ends, where the model's
// numbers are read, and what was cut.

import { post, inWords } from "./api.js";
import { el, freshId, letter } from "./dom.js";
import { promptOf } from "./state.js";

const MOST = 2000;

/** Return a folded section that asks the service when it is opened. */
export function tokenSection(question) {
  const id = freshId("tokens");
  const choice = el("select", { id }, ...question.responses.map((_, index) => el("option", { value: index }, letter(index))));
  const content = el("div", { class: "tokens", "aria-live": "polite" });
  const prompt = promptOf(question);
  const responses = [...question.responses];
  const { model, principle } = question;

  async function load() {
    const response = responses[Number(choice.value)];
    content.replaceChildren(el("p", { class: "soft small" }, "Reading…"));
    try {
      const item = { prompt, response, ...(principle && { principle }) };
      const { answer } = await post("v1/tokens", { model, items: [item], return: ["pieces"] });
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
    `${ids.length} tokens, ${end} of them the prompt's`,
    read.size ? `; its numbers are read at the marked ${read.size === 1 ? "one" : "ones"}.` : "; its numbers are read from the mean of all.",
  ];
  if (reading.shown === false) words.push(" The chat template left out some of the words.");
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
  if (ids.length > MOST) parts.push(el("p", { class: "soft small" }, `The first ${MOST} are shown.`));
  return parts;
}

function cutMark({ truncated_tokens: tokens = 0, truncated_messages: messages = 0 }) {
  if (!tokens) return null;
  const whole = messages ? `, with ${messages} whole ${messages === 1 ? "message" : "messages"},` : "";
  return el("p", { class: "cut" }, `✂ ${tokens} tokens${whole} were cut here: the conversation is longer than the model reads.`);
}

function range(from, to) {
  return Array.from({ length: to - from }, (_, at) => from + at);
}

function visible(piece) {
  return piece.replaceAll("\n", "⏎") || "∅";
}
