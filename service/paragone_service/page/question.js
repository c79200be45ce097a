// The form: which model, what was said, and the responses to choose between.

import { estimate } from "./costs.js";
import { el, freshId, letter } from "./dom.js";
import { rulesFields } from "./rules.js";
import { MAX_RESPONSES, MAX_TURNS, MIN_RESPONSES, ROLES } from "./state.js";

/** What a kind of model does, in a few words. */
const KINDS = {
  "bradley-terry": "gives each response one reward",
  regression: "rates attributes, which weights merge into a reward",
  helpsteer: "gives a reward, with ratings that explain it",
  "general-preference": "compares vectors, so its preferences can run in circles",
  hybrid: "adds vectors to a reward, so its preferences can run in circles",
  process: "scores each step of a response",
  pairwise: "reads both responses at once",
  judge: "a language model on another server, which is asked for a verdict",
  ensemble: "combines several hosted models",
};

/** Return `{element, busy, mark, clear, setModels}` of a form that edits the question in place.
 *
 * `edited` is called after each edit, `submitted` when the question is to be asked and `stopped` when its answer is no
 * longer wanted; `mark` puts an error under a response, by index, and `clear` takes all of them away.
 */
export function questionForm(question, models, { edited, submitted, stopped }) {
  const errors = [];
  const rules = rulesFields(question, changed);
  const price = el("p", { class: "soft small price" });
  const choices = modelFields(question, () => models, changed);
  const turns = el("div", { class: "turns" });
  const responses = el("ol", { class: "responses" });

  function changed() {
    drawRules();
    edited();
  }

  function drawRules() {
    const asked = [question.model, question.second].map((name) => models.find((model) => model.id === name)).filter(Boolean);
    rules.draw(asked, models);
    price.textContent = estimate(question, asked, models);
    price.hidden = !price.textContent;
  }

  function drawTurns() {
    const single = question.turns.length === 1 && question.turns[0].role === "user";
    turns.replaceChildren(
      ...question.turns.map((turn, index) => turnField(turn, index, single)),
      el("button", {
        type: "button",
        class: "quiet small",
        disabled: question.turns.length >= MAX_TURNS,
        onclick: () => {
          const last = question.turns.at(-1).role;
          question.turns.push({ role: last === "user" ? "assistant" : "user", content: "" });
          redraw(drawTurns, turns);
        },
      }, "Add a turn"),
    );
  }

  function turnField(turn, index, single) {
    const id = freshId("turn");
    const label = single ? "Prompt" : `Turn ${index + 1}`;
    const field = textField(id, turn.content, "A question or an instruction", (value) => {
      turn.content = value;
    });
    if (single) return el("div", { class: "turn" }, el("label", { for: id }, label), field);
    const role = el(
      "select",
      {
        "aria-label": `Who speaks in turn ${index + 1}`,
        onchange: (event) => {
          turn.role = event.target.value;
          changed();
        },
      },
      ...ROLES.map((one) => el("option", { value: one }, one)),
    );
    role.value = turn.role;
    const remove = removeButton(`Remove turn ${index + 1}`, question.turns.length > 1, () => {
      question.turns.splice(index, 1);
      redraw(drawTurns, turns);
    });
    return el("div", { class: "turn" }, el("div", { class: "row" }, el("label", { for: id }, label), role, remove), field);
  }

  function drawResponses() {
    errors.length = 0;
    responses.replaceChildren(...question.responses.map(responseField));
    add.disabled = question.responses.length >= MAX_RESPONSES;
  }

  function responseField(text, index) {
    const id = freshId("response");
    const error = el("p", { class: "problem", hidden: true, id: `${id}-error` });
    errors.push(error);
    const name = letter(index);
    const field = textField(id, text, "A response", (value) => {
      question.responses[index] = value;
      error.hidden = true;
    });
    field.setAttribute("aria-describedby", error.id);
    const remove = removeButton(`Remove response ${name}`, question.responses.length > MIN_RESPONSES, () => {
      question.responses.splice(index, 1);
      redraw(drawResponses, responses);
    });
    const label = el("label", { for: id, class: "badge" }, el("span", { class: "unseen" }, "Response "), name);
    return el("li", {}, label, el("div", { class: "grow" }, field, error), remove);
  }

  function textField(id, value, placeholder, keep) {
    return el("textarea", {
      id,
      rows: 2,
      placeholder,
      value,
      dir: "auto",
      oninput: (event) => {
        keep(event.target.value);
        changed();
      },
    });
  }

  function redraw(draw, root) {
    draw();
    changed();
    // The field that appeared, or one near what went: the focus must not fall back to the top of the page.
    [...root.querySelectorAll("textarea")].at(-1)?.focus();
  }

  const add = el("button", {
    type: "button",
    class: "quiet small",
    onclick: () => {
      question.responses.push("");
      redraw(drawResponses, responses);
    },
  }, "Add a response");

  const submit = el("button", { type: "submit", class: "strong" }, "Compare");
  const stop = el("button", { type: "button", hidden: true, onclick: stopped }, "Stop");
  const element = el(
    "form",
    {
      class: "question",
      "aria-label": "Question",
      onsubmit: (event) => {
        event.preventDefault();
        submitted();
      },
      onkeydown: (event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
          event.preventDefault();
          element.requestSubmit();
        }
      },
    },
    choices.element,
    turns,
    rules.element,
    el("h2", {}, "Responses"),
    responses,
    price,
    el("div", { class: "row spread" }, add, el("span", { class: "row" }, el("kbd", {}, "Ctrl ↵"), stop, submit)),
  );
  drawTurns();
  drawResponses();
  drawRules();
  return {
    element,
    busy(waiting) {
      stop.hidden = !waiting;
      submit.disabled = waiting;
      submit.textContent = waiting ? "Comparing…" : "Compare";
    },
    clear() {
      for (const error of errors) error.hidden = true;
    },
    /** Offer these models, keeping what is chosen where it is still there. */
    setModels(hosted) {
      models = hosted;
      choices.draw();
      drawRules();
    },
    mark(index, message) {
      if (!errors[index]) return;
      errors[index].textContent = message;
      errors[index].hidden = false;
    },
  };
}

function removeButton(name, possible, onclick) {
  return el("button", { type: "button", class: "quiet remove", "aria-label": name, title: name, disabled: !possible, onclick }, "×");
}

function modelFields(question, models, changed) {
  const [first, second] = [freshId("model"), freshId("model")];
  const about = el("p", { class: "soft small", id: `${first}-about` });
  const choice = el("select", {
    id: first,
    "aria-describedby": about.id,
    onchange: (event) => {
      question.model = event.target.value;
      question.weights = null;
      question.skew = null;
      describe();
      changed();
    },
  });
  const other = el("select", {
    id: second,
    onchange: (event) => {
      question.second = event.target.value;
      changed();
    },
  });

  function describe() {
    about.replaceChildren(...described(models().find((model) => model.id === question.model)));
  }

  function draw() {
    const names = models().map((model) => model.id);
    const options = () => names.map((name) => el("option", { value: name }, name));
    if (!names.includes(question.model)) question.model = names[0] ?? "";
    if (!names.includes(question.second)) question.second = "";
    choice.replaceChildren(...options());
    choice.value = question.model;
    other.replaceChildren(el("option", { value: "" }, "none"), ...options());
    other.value = question.second;
    describe();
  }

  draw();
  return {
    element: el("div", { class: "models" },
      el("div", { class: "field" }, el("label", { for: first }, "Model"), choice),
      el("div", { class: "field" }, el("label", { for: second }, "Second model"), other),
      about),
    draw,
  };
}

function described(model) {
  if (!model) return [];
  const kind = model.kind in KINDS ? `${model.kind}: ${KINDS[model.kind]}` : model.kind;
  const parts = [`${kind}.`];
  if (model.ensemble) parts.push(` Members: ${model.ensemble.members.join(", ")}.`);
  if (model.domain) parts.push(` Made to judge: ${model.domain.replace(/\.$/, "")}.`);
  if (model.demonstration) parts.push(" ", el("b", { class: "demonstration" }, "A demonstration model: do not rely on its judgement."));
  return parts;
}
