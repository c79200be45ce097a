// What the reader prefers of the responses that a model has just compared: kept among the judgements.

import { el, letter } from "./dom.js";
import { labels } from "./labels.js";
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
  const said = el("span", { class: "soft small" });
  const element = el("section", { class: "opinion", "aria-label": "Your own judgement" },
    el("h2", {}, "And you?"),
    el("div", { class: "row" }, ...(question.responses.length > 2 ? fields : []), buttons, said));
  draw();
  return element;

  function draw() {
    const [one, other] = fields.map((field) => Number(field.value));
    const say = (words, strength) => el("button", { type: "button", disabled: one === other, onclick: () => judge(one, other, strength, words) }, words);
    said.replaceChildren();
    buttons.replaceChildren(say(`${letter(one)} is better`, 1), say("A tie", 0), say(`${letter(other)} is better`, -1));
  }

  function judge(one, other, strength, words) {
    labels.judge({ prompt: promptOf(question), first: question.responses[one], second: question.responses[other] }, strength);
    const count = labels.judged.length;
    said.replaceChildren(`${words}: kept. `, el("a", { href: "#label" }, `${count} ${count === 1 ? "judgement" : "judgements"}`));
    context.announce(`${words}: kept.`);
  }
}
