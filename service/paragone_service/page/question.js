// The form: which model, what was said, and the responses to choose between.

import { el, freshId, letter } from "./dom.js";
import { MAX_RESPONSES, MAX_TURNS, MIN_RESPONSES, ROLES } from "./state.js";

/** What a kind of model does, in a few words. */
const KINDS = {
  "bradley-terry": "one reward per response",
  regression: "ratings of attributes, merged by weights",
  helpsteer: "a reward, with ratings that explain it",
  "general-preference": "compares vectors, so preferences can run in circles",
  hybrid: "a reward beside vectors that can run in circles",
  process: "a number for each step",
  pairwise: "reads both responses at once",
  judge: "a generative judge, asked in words",
  ensemble: "several models together",
};

/** Return `{element, busy, mark, clear}` of a form that edits the question in place.
 *
 * `changed` is called after each edit, `submitted` when the question is to be asked; `mark` puts an error under a
 * response, by index, and `clear` takes all of them away.
 */
export function questionForm(question, models, { changed, submitted }) {
  const errors = [];
  const turns = el("div", { class: "turns" });
  const responses = el("ol", { class: "responses" });

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
    const field = textField(id, turn.content, "What is asked", (value) => {
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
      oninput: (event) => {
        keep(event.target.value);
        changed();
      },
    });
  }

  function principleField() {
    const id = freshId("principle");
    const field = textField(id, question.principle, "The clearer answer is better.", (value) => {
      question.principle = value;
    });
    return el(
      "details",
      { class: "folded", open: question.principle !== "" },
      el("summary", { class: "soft" }, "A principle to judge by"),
      el("label", { for: id }, "Principle, for judges and models that follow one"),
      field,
    );
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
          submitted();
        }
      },
    },
    modelFields(question, models, changed),
    turns,
    principleField(),
    el("h2", {}, "Responses"),
    responses,
    el("div", { class: "row spread" }, add, el("span", { class: "row" }, el("kbd", {}, "Ctrl ↵"), submit)),
  );
  drawTurns();
  drawResponses();
  return {
    element,
    busy(waiting) {
      submit.disabled = waiting;
      submit.textContent = waiting ? "Comparing…" : "Compare";
    },
    clear() {
      for (const error of errors) error.hidden = true;
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
  const named = (name) => models.find((model) => model.id === name);
  if (!named(question.model)) question.model = models[0]?.id ?? "";
  if (!named(question.second)) question.second = "";
  const options = () => models.map((model) => el("option", { value: model.id }, model.id));
  const describe = () => {
    about.replaceChildren(...described(named(question.model)));
  };
  const choice = el("select", {
    id: first,
    "aria-describedby": about.id,
    onchange: (event) => {
      question.model = event.target.value;
      question.weights = null;
      question.skew = null;
      describe();
      changed({ model: true });
    },
  }, ...options());
  choice.value = question.model;
  const other = el("select", {
    id: second,
    onchange: (event) => {
      question.second = event.target.value;
      changed({ model: true });
    },
  }, el("option", { value: "" }, "none"), ...options());
  other.value = question.second;
  describe();
  return el(
    "div",
    { class: "models" },
    el("div", {}, el("label", { for: first }, "Model"), choice),
    el("div", {}, el("label", { for: second }, "Second model"), other),
    about,
  );
}

function described(model) {
  if (!model) return [];
  const kind = model.kind in KINDS ? `${model.kind}: ${KINDS[model.kind]}` : model.kind;
  const parts = [`${kind}.`];
  if (model.demonstration) parts.push(" ", el("b", { class: "demonstration" }, "A demonstration: it shows how things work, not what is good."));
  if (model.domain) parts.push(` It knows: ${model.domain.replace(/\.$/, "")}.`);
  return parts;
}
