// What the reader prefers of the responses that a model has just compared: kept among the judgements.

import { count, el, letter } from "./dom.js";
import { distinct, labels } from "./labels.js";
import { promptOf } from "./state.js";

/** Return a section in which somebody says which of two responses is better. */
export function opinionSection(question, context) {
  const chooser = (name, chosen) => {
    const field = el("select", { "aria-label": name, onchange: draw }, ...question.responses.map((_, at) => el("option", { value: at }, letter(at))));
    field.value = chosen;
    return field;
  };
  const fields = [chooser("One response", 0), chooser("The other response", 1)];
  const buttons = el("span", { class: "row" });
  const outcome = el("span", { class: "soft small" });
  const element = el("section", { class: "opinion", "aria-label": "Your own judgement" },
    el("h2", {}, "What do you prefer?"),
    el("div", { class: "row" }, ...(question.responses.length > 2 ? fields : []), buttons, outcome));
  draw();
  return element;

  function draw() {
    const [one, other] = fields.map((field) => Number(field.value));
    const pair = { prompt: promptOf(question), first: question.responses[one], second: question.responses[other] };
    const say = (words, strength) => el("button", { type: "button", disabled: !distinct(pair), onclick: () => judge(pair, strength, words) }, words);
    outcome.replaceChildren(distinct(pair) ? "" : one === other ? "Choose two different responses." : "Both responses have the same text.");
    buttons.replaceChildren(say(`${letter(one)} is better`, 1), say("Tie", 0), say(`${letter(other)} is better`, -1));
  }

  function judge(pair, strength, words) {
    labels.judge(pair, strength);
    outcome.replaceChildren(`${words}: saved. `, el("a", { href: "#label" }, count(labels.judged.length, "judgement")));
    context.announce(`${words}: saved.`);
  }
}
