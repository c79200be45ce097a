// How a model is to be asked, where it can be told: by which principle or criteria it judges, and which pairs it compares.

import { count, el, freshId } from "./dom.js";
import { costsPairs, pairsOf } from "./costs.js";
import { MAX_CRITERIA } from "./state.js";

/** Return `{element, draw}` of the fields for the question's models; `draw(asked, models)` when these or the responses
 * have changed. */
export function rulesFields(question, changed) {
  const rule = el("div", { class: "rule" });
  const plan = el("div", { class: "plan" });
  let mode = question.criteria.length ? "criteria" : question.principle ? "principle" : "own";
  let takes = [];

  function drawRule() {
    const modes = { own: "its own rule", ...(takes.includes("principle") && { principle: "a principle" }), ...(takes.includes("criteria") && { criteria: "several criteria" }) };
    rule.hidden = !takes.length;
    if (!takes.length) return;
    const id = freshId("rule");
    const choice = el("select", { id, onchange: () => turn(choice.value) }, ...Object.entries(modes).map(([value, words]) => el("option", { value }, words)));
    choice.value = mode in modes ? mode : "own";
    rule.replaceChildren(
      el("div", { class: "field" }, el("label", { for: id }, "Judge by"), choice),
      ...(choice.value === "principle" ? [principleField()] : choice.value === "criteria" ? criteriaFields() : []),
    );
  }

  function turn(to) {
    mode = to;
    if (mode !== "criteria") question.criteria = [];
    else if (!question.criteria.length) question.criteria = [{ name: "helpful", text: "", weight: 1 }, { name: "clear", text: "", weight: 1 }];
    if (mode !== "principle") question.principle = "";
    drawRule();
    changed();
    rule.querySelector("textarea, input")?.focus();
  }

  function principleField() {
    return textField("Principle", "The clearer answer is better.", question.principle, (value) => {
      question.principle = value;
    });
  }

  function criteriaFields() {
    const rows = question.criteria.map((one, at) =>
      el("li", { class: "criterion" },
        el("div", { class: "row" },
          input("Name", `Name of criterion ${at + 1}`, { value: one.name, maxlength: 64, size: 14, class: "grow" }, (value) => {
            one.name = value;
          }),
          input("Weight", `Weight of criterion ${at + 1}`, { type: "number", value: one.weight, min: 0.1, max: 1000, step: "any", class: "weight" }, (value) => {
            one.weight = Number(value);
          }),
          el("button", { type: "button", class: "quiet remove", "aria-label": `Remove criterion ${at + 1}`, disabled: question.criteria.length < 2, onclick: () => {
            question.criteria.splice(at, 1);
            redraw();
          } }, "×")),
        textField(`Criterion ${at + 1}`, "What the judge is told, for example: Prefer the clearer answer.", one.text, (value) => {
          one.text = value;
        }, true)));
    const add = el("button", { type: "button", class: "quiet small", disabled: question.criteria.length >= MAX_CRITERIA, onclick: () => {
      question.criteria.push({ name: `criterion ${question.criteria.length + 1}`, text: "", weight: 1 });
      redraw();
    } }, "Add a criterion");
    return [el("ol", { class: "criteria" }, ...rows), add];
  }

  function redraw() {
    drawRule();
    changed();
    [...rule.querySelectorAll("textarea")].at(-1)?.focus();
  }

  function textField(label, placeholder, value, keep, unseen = false) {
    const id = freshId("rule-text");
    return el("div", {},
      el("label", { for: id, class: unseen ? "unseen" : null }, label),
      el("textarea", { id, rows: 2, placeholder, value, dir: "auto", maxlength: 10_000, required: true, oninput: (event) => {
        keep(event.target.value);
        changed();
      } }));
  }

  function input(placeholder, label, attributes, keep) {
    return el("input", { placeholder, "aria-label": label, required: true, autocomplete: "off", ...attributes, oninput: (event) => {
      keep(event.target.value);
      changed();
    } });
  }

  function drawPlan(asked, models) {
    const size = question.responses.length;
    const every = pairsOf("all", size);
    plan.hidden = size < 3 || !asked.some((model) => costsPairs(model, models));
    // A plan that is not shown is not asked for, and one for more responses fits fewer.
    if (plan.hidden) question.comparisons = "all";
    const budget = question.comparisons.startsWith("budget:");
    if (budget) question.comparisons = `budget:${Math.min(every, Math.max(size - 1, Number(question.comparisons.slice(7)) || 0))}`;
    const [id, numberId] = [freshId("plan"), freshId("budget")];
    const choice = el("select", { id, onchange: () => {
      question.comparisons = choice.value === "budget" ? `budget:${size - 1}` : choice.value;
      changed();
      plan.querySelector("select")?.focus();
    } },
    ...[["all", `all ${count(every, "pair")}`], ["circular", `each with the next (${count(pairsOf("circular", size), "pair")})`],
      ["bracket", `knock-out (up to ${count(pairsOf("bracket", size), "pair")})`], ["budget", "a number:"]].map(([value, words]) => el("option", { value }, words)));
    choice.value = budget ? "budget" : question.comparisons;
    const number = el("input", { id: numberId, type: "number", class: "weight", min: size - 1, max: every, value: budget ? question.comparisons.slice(7) : "", "aria-label": "Number of pairs", onchange: () => {
      question.comparisons = `budget:${Math.round(Number(number.value)) || size - 1}`;
      changed();
      plan.querySelector("input")?.focus();
    } });
    plan.replaceChildren(
      el("div", { class: "field" }, el("label", { for: id }, "Compare"), el("div", { class: "row" }, choice, budget ? number : null)),
      ...(question.comparisons === "all" ? [] : [el("p", { class: "soft small" }, "The other pairs are inferred from these."), circles()]),
    );
  }

  function circles() {
    const box = el("input", { type: "checkbox", checked: question.circles, onchange: () => {
      question.circles = box.checked;
      changed();
      plan.querySelector("input[type=checkbox]")?.focus();
    } });
    return el("label", { class: "row" }, box, "Inferred preferences may run in circles");
  }

  return {
    element: el("div", { class: "rules" }, rule, plan),
    draw(asked, models) {
      const now = [...new Set(asked.flatMap((model) => model?.judged_by ?? []))];
      if (now.join() !== takes.join()) {
        takes = now;
        drawRule();
      }
      rule.hidden = !takes.length;
      drawPlan(asked, models);
    },
  };
}
