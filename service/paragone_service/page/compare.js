// The view that asks a question and shows the answer.

import { inWords, post, sentence } from "./api.js";
import { answersTo, weighable } from "./answers.js";
import { attributes } from "./attributes.js";
import { costs, judgesOf } from "./costs.js";
import { el, scrolling } from "./dom.js";
import { duel } from "./duel.js";
import { EXAMPLES } from "./examples.js";
import { graph } from "./graph.js";
import { abstention, abstains, circleOf, failures, headline, inferred } from "./headline.js";
import { heatmap } from "./heatmap.js";
import { opinionSection } from "./opinion.js";
import { byCriterion, pairNotes } from "./pair.js";
import { questionForm } from "./question.js";
import { snippetSection } from "./snippets.js";
import { standing } from "./standing.js";
import { blank, fragmentOf, requestOf, ruleOf } from "./state.js";
import { tokenSection } from "./tokens.js";
import { versus } from "./versus.js";

const CONFIRM_AFTER_MS = 300;
const WAIT_SHOWN_AFTER_MS = 400;
const WIDEST_GRAPH = 760;
const UNWRITTEN = "Write a prompt and at least two responses, or choose an example. The model's answer appears here.";
const LINKED = "This question came with a link and has not been sent yet. Check it, then press Compare.";
const UNSENT = "This example has not been sent yet, because asking a judge may cost money. Press Compare to send it.";
const STOPPED = "Stopped. Press Compare to ask again.";

export const compare = {
  id: "compare",
  title: "Compare",
  open(root, context, asked, own) {
    const view = { form: null };
    context.question = asked;
    if (asked) build(root, context, view, asked, { run: own || runsByItself(context.models, asked), idle: LINKED });
    else {
      const question = ofExample(EXAMPLES[0], context.models);
      if (question.model && runsByItself(context.models, question)) build(root, context, view, question, { run: true });
      else build(root, context, view, blank(), { run: false });
    }
    return { modelsChanged: () => view.form.setModels(context.models) };
  },
};

// What nobody on this page asked for, the first example or somebody's link, is run where that costs nothing:
// demonstrations on this server. A name that is not hosted stands for what the form takes in its place.
function runsByItself(models, question) {
  return modelsOf(models, question).every((one) => one?.demonstration);
}

function modelsOf(models, { model, second }) {
  const named = (name) => models.find((one) => one.id === name);
  const other = named(second);
  return [named(model) ?? models[0], ...(other ? [other] : [])];
}

function ofExample(example, models) {
  const hosted = (name) => (models.some((model) => model.id === name) ? name : "");
  const { turns, responses } = structuredClone({ turns: example.turns, responses: example.responses });
  return { ...blank(), model: hosted(example.model), second: hosted(example.second), turns, responses };
}

function exampleRow(models, chosen) {
  const hosted = (name) => !name || models.some((model) => model.id === name);
  return el(
    "div",
    { class: "examples", role: "group", "aria-label": "Examples" },
    ...EXAMPLES.map((example) => {
      // What an example shows of the model that it was written for, no other need show.
      const hint = hosted(example.model) && hosted(example.second) ? example.hint : example.otherwise;
      return el("button", { type: "button", class: "chip", onclick: () => chosen(example) }, example.title, el("small", {}, hint));
    }),
  );
}

function build(root, context, view, question, { run, idle = UNWRITTEN, reveal = false }) {
  let underway = null;
  let confirming = null;
  const results = el("section", { class: "results", "aria-label": "Answer" });
  const form = questionForm(question, context.models, {
    edited() {
      results.classList.add("stale");
      context.question = question;
    },
    submitted: () => ask(true),
    stopped() {
      underway?.abort();
      say(STOPPED);
    },
  });
  view.form = form;
  const examples = exampleRow(context.models, (example) => {
    underway?.abort();
    clearTimeout(confirming);
    context.question = null;
    const next = ofExample(example, context.models);
    const free = modelsOf(context.models, next).every((model) => !judgesOf(model, context.models).length);
    build(root, context, view, next, { run: free, idle: UNSENT, reveal: true });
    root.querySelectorAll(".chip")[EXAMPLES.indexOf(example)]?.focus();
  });
  root.replaceChildren(el("div", { class: "asking" }, examples, form.element), results);
  if (run) ask(reveal);
  else say(idle);

  function say(text) {
    results.replaceChildren(el("p", { class: "soft" }, text));
  }

  async function ask(toSee = false) {
    underway?.abort();
    clearTimeout(confirming);
    const mine = new AbortController();
    underway = mine;
    form.busy(true);
    form.clear();
    results.setAttribute("aria-busy", "true");
    context.keepAddress(fragmentOf("compare", question));
    const asked = structuredClone(question);
    const settle = waiting(results, asked);
    try {
      const answers = await answersTo(asked, context.models, mine.signal);
      if (underway !== mine) return;
      show(asked, answers);
      // On a phone the answer stands below the form, where whoever asked would not see it.
      if (toSee && results.getBoundingClientRect().top > 0.8 * window.innerHeight) results.scrollIntoView({ block: "start" });
    } catch (error) {
      if (error.name === "AbortError" || underway !== mine) return;
      if (error.wantsKey) {
        context.needsKey = true;
        context.askForKey(() => ask(), error.code === "wrong_key" ? inWords(error) : null);
      }
      mark(error);
      results.replaceChildren(problem(error));
    } finally {
      settle();
      if (underway === mine) {
        form.busy(false);
        results.removeAttribute("aria-busy");
        results.classList.remove("stale");
      }
    }
  }

  function mark(error) {
    const { response, item } = error.detail ?? {};
    if (Number.isInteger(response) && item === 0) form.mark(response, sentence(error.message));
  }

  function problem(error) {
    const again = error.passes ? el("button", { type: "button", onclick: () => ask() }, "Try again") : null;
    return el("p", { class: "problem", role: "alert" }, inWords(error), " ", again);
  }

  function show(asked, { ours, theirs }) {
    const live = el("div", { class: "live" });
    const weighed = ours.rewards && sliders(live, asked, ours);
    for (const error of ours.tournament?.errors ?? []) if (Number.isInteger(error.response) && error.opponent === undefined) form.mark(error.response, sentence(error.message));
    if (ours.error) {
      mark(ours.error);
      live.append(problem(ours.error));
    } else {
      draw(live, asked, ours);
      context.announce(headline(ours.tournament));
    }
    const unweighed = weighable(ours);
    const answered = [ours, theirs].filter((one) => one?.answer);
    results.replaceChildren(
      live,
      ...[
        ours.error ? null : opinionSection(asked, context),
        weighed,
        theirs ? secondModel(asked, ours, theirs) : null,
        ...answered.map((one) => untold(asked, one.model)),
        ...answered.map(costs),
        unweighed || !ours.model.dimension ? null : tokenSection(asked, ours.model),
        unweighed ? null : snippetSection(asked, [ours, ...(theirs ? [theirs] : [])].map((one) => one.model), context),
      ].filter(Boolean),
    );
    if (!ours.error) draw(live, asked, ours); // again, now that its width is known
  }

  function sliders(live, asked, ours) {
    return attributes(ours.model, ours.rewards, asked, (local, change) => {
      Object.assign(question, change);
      context.question = question;
      clearTimeout(confirming);
      if (!local) return ask();
      draw(live, asked, { ...ours, tournament: local });
      confirming = setTimeout(() => confirm(live, asked, ours), CONFIRM_AFTER_MS);
    });
  }

  // The sliders have been still for a moment: the service's own answer takes the place of the page's.
  async function confirm(live, asked, ours) {
    const { weights, skew } = question;
    context.keepAddress(fragmentOf("compare", question));
    underway?.abort();
    const mine = new AbortController();
    underway = mine;
    try {
      const { answer } = await post("v1/tournaments", requestOf({ ...asked, weights, skew }, ours.model), { signal: mine.signal });
      const [tournament] = answer.tournaments;
      if (underway === mine && !tournament.error) draw(live, asked, { ...ours, answer, tournament });
    } catch (error) {
      if (error.name !== "AbortError" && underway === mine) live.prepend(el("p", { class: "problem", role: "alert" }, inWords(error)));
    }
  }
}

// A judge takes its time: whoever waits sees for whom, and for how long. Returns what ends it.
function waiting(results, { model, second }) {
  const words = el("p", { class: "soft waiting" });
  const started = performance.now();
  const tick = () => {
    const seconds = Math.floor((performance.now() - started) / 1000);
    words.textContent = `Waiting for ${second ? `${model} and ${second}` : model}${seconds ? `, ${seconds} s` : ""} …`;
    if (!words.isConnected) results.prepend(words);
  };
  const timers = [setTimeout(tick, WAIT_SHOWN_AFTER_MS), setInterval(tick, 1000)];
  return () => {
    timers.forEach(clearTimeout);
    words.remove();
  };
}

function draw(live, question, { tournament, answer, model, members }) {
  const { matrix, ranking } = tournament;
  const { responses } = question;
  if (ranking.length < 2) {
    live.replaceChildren(el("h2", { class: "headline" }, headline(tournament)));
    return;
  }
  const circle = circleOf(matrix);
  // Where no one leads, the closest pair of a ranking says little: the first arrow of the circle is shown.
  const [first, second] = circle ?? ranking;
  const pair = duel(matrix, first, second, answer ?? model, (a, b) => pairNotes({ tournament, model, members }, a, b));
  const width = Math.max(280, Math.min(WIDEST_GRAPH, live.clientWidth || WIDEST_GRAPH));
  const several = ranking.length > 2;
  const [doubt, failed] = [abstention(tournament, model), failures(tournament)];
  const mark = (a, b) => (abstains(tournament, a, b) ? "abstained" : inferred(tournament, a, b) ? "inferred" : null);
  live.replaceChildren(
    ...[
      el("h2", { class: circle ? "headline circling" : "headline" }, headline(tournament)),
      failed ? el("p", { class: "problem" }, failed) : null,
      doubt ? el("p", { class: "note" }, doubt) : null,
      pair.element,
      several ? el("div", { class: "pictures" },
        figure("Who beats whom", graph(matrix, responses, width, pair.choose)),
        figure(`Probability that the row is preferred to the column${tournament.fit ? "; italic: inferred" : ""}`,
          scrolling("Table of probabilities", heatmap(matrix, responses, ranking, pair.choose, mark)))) : null,
      figure(several ? "Ranking by win rate, with the Nash mixture" : "Ranking", scrolling("Ranking", standing(tournament, responses))),
      tournament.criteria ? figure("Win rate by each criterion", scrolling("Win rates by criterion", byCriterion(tournament))) : null,
    ].filter(Boolean),
  );
}

function figure(caption, content) {
  return el("figure", {}, el("figcaption", {}, caption), content);
}

function secondModel(question, ours, theirs) {
  if (!ours.error && !theirs.error) return versus([ours.model.id, theirs.model.id], [ours.tournament, theirs.tournament]);
  const live = el("div", { class: "live" });
  if (theirs.error) live.append(el("p", { class: "problem", role: "alert" }, inWords(theirs.error)));
  else draw(live, question, theirs);
  return el("section", { class: "versus", "aria-label": "Second model" }, el("h2", {}, `Second model: ${theirs.model.id}`), live);
}

// A question may say what to judge by to a model that can be told nothing: it is asked without that, and this says so.
function untold(question, model) {
  const said = question.criteria.length ? "criteria" : question.principle ? "principle" : null;
  if (!said || said in ruleOf(question, model)) return null;
  return el("p", { class: "note small" }, `${model.id} cannot be told what to judge by, so it was asked without the ${said}.`);
}
