// The view that asks a question and shows the answer.

import { ApiError, inWords, post } from "./api.js";
import { attributes } from "./attributes.js";
import { el, letter, listed, written } from "./dom.js";
import { duel } from "./duel.js";
import { EXAMPLES } from "./examples.js";
import { graph } from "./graph.js";
import { heatmap } from "./heatmap.js";
import { opinionSection } from "./opinion.js";
import { questionForm } from "./question.js";
import { snippetSection } from "./snippets.js";
import { standing } from "./standing.js";
import { blank, fragmentOf, promptOf, requestOf } from "./state.js";
import { groupsOf, ringOf } from "./table.js";
import { tokenSection } from "./tokens.js";
import { versus } from "./versus.js";

const CONFIRM_AFTER_MS = 300;
const WIDEST_GRAPH = 760;
const UNWRITTEN = "Write a prompt and its responses, or take an example: what the model prefers will stand here.";
const LINKED = "A link brought this question, and nothing was asked yet. Look at it, and press Compare to ask it.";

export const compare = {
  id: "compare",
  title: "Compare",
  open(root, context, asked, own) {
    if (asked) return build(root, context, asked, { run: own || runsByItself(context.models, asked), idle: LINKED });
    const [example] = EXAMPLES;
    const question = ofExample(example, context.models);
    if (question.model && runsByItself(context.models, question)) build(root, context, question, { run: true });
    else build(root, context, blank(), { run: false });
  },
};

// What nobody on this page asked for, an example or a stranger's link, is run where that costs nothing: demonstrations
// on this server, and no judge elsewhere. A name that is not hosted stands for what the form takes in its place.
function runsByItself(models, { model, second }) {
  const named = (name) => models.find((one) => one.id === name);
  const other = named(second);
  return [named(model) ?? models[0], ...(other ? [other] : [])].every((one) => one?.demonstration);
}

function ofExample(example, models) {
  const hosted = (name) => (models.some((model) => model.id === name) ? name : "");
  const { turns, responses } = structuredClone({ turns: example.turns, responses: example.responses });
  return { ...blank(), model: hosted(example.model), second: hosted(example.second), turns, responses };
}

function build(root, context, question, { run, idle = UNWRITTEN }) {
  let underway = null;
  let confirming = null;
  const results = el("section", { class: "results", "aria-label": "Answer" });
  const form = questionForm(question, context.models, {
    changed: () => results.classList.add("stale"),
    submitted: ask,
  });
  root.replaceChildren(el("div", { class: "asking" }, exampleRow(), form.element), results);
  if (run) ask();
  else results.append(el("p", { class: "soft" }, idle));

  function exampleRow() {
    return el(
      "div",
      { class: "examples", role: "group", "aria-label": "Examples" },
      ...EXAMPLES.map((example) =>
        el(
          "button",
          {
            type: "button",
            class: "chip",
            onclick: () => {
              underway?.abort();
              clearTimeout(confirming);
              build(root, context, ofExample(example, context.models), { run: true });
              root.querySelector(".chip")?.focus();
            },
          },
          example.title,
          el("small", {}, example.hint),
        ),
      ),
    );
  }

  async function ask() {
    underway?.abort();
    clearTimeout(confirming);
    const mine = new AbortController();
    underway = mine;
    form.busy(true);
    form.clear();
    context.keepAddress(fragmentOf("compare", question));
    const asked = structuredClone(question);
    try {
      const answers = await answersTo(asked, context, mine.signal);
      if (underway !== mine) return;
      if (answers.unweighed) showUnweighed(asked, answers);
      else show(asked, answers);
    } catch (error) {
      if (error.name === "AbortError" || underway !== mine) return;
      if (error instanceof ApiError && error.wantsKey) {
        context.needsKey = true;
        context.askForKey(ask, error.code === "wrong_key" ? inWords(error) : null);
      }
      fail(error);
    } finally {
      if (underway === mine) {
        form.busy(false);
        results.classList.remove("stale");
      }
    }
  }

  function fail(error) {
    const { response, item } = error.detail ?? {};
    if (Number.isInteger(response) && item === 0) form.mark(response, error.message);
    const again = error.passes ? el("button", { type: "button", onclick: ask }, "Try again") : null;
    results.replaceChildren(el("p", { class: "problem", role: "alert" }, inWords(error), " ", again));
  }

  function show(asked, answers) {
    const { ours, theirs, rewards, model } = answers;
    const [tournament] = ours.answer.tournaments;
    for (const error of tournament.errors ?? []) if (Number.isInteger(error.response)) form.mark(error.response, error.message);
    const live = el("div", { class: "live" });
    const weighed = rewards && sliders(live, asked, model, rewards, ours.answer);
    if (tournament.error) {
      live.append(el("p", { class: "problem", role: "alert" }, tournament.error.message));
    } else {
      draw(live, asked, tournament, ours.answer);
      context.announce(headline(tournament));
    }
    results.replaceChildren(
      live,
      ...[
        tournament.error ? null : opinionSection(asked, context),
        weighed,
        secondModel(asked, tournament, theirs),
        costs(ours),
        theirs ? costs(theirs) : null,
        tokenSection(asked),
        snippetSection(asked, context),
      ].filter(Boolean),
    );
    if (!tournament.error) draw(live, asked, tournament, ours.answer); // again, now that its width is known
  }

  // A model that rates, and does not say how its ratings become one preference: whoever asks says it.
  function showUnweighed(asked, { model, rewards, unweighed }) {
    const live = el("div", { class: "live" }, el("p", { class: "problem", role: "alert" }, inWords(unweighed)));
    results.replaceChildren(...[live, sliders(live, asked, model, rewards, {})].filter(Boolean));
  }

  function sliders(live, asked, model, rewards, answer) {
    return attributes(model, rewards, asked, (local, change) => {
      Object.assign(question, change);
      clearTimeout(confirming);
      if (!local) return ask();
      draw(live, asked, local, answer);
      confirming = setTimeout(() => confirm(live, asked), CONFIRM_AFTER_MS);
    });
  }

  // The sliders have been still for a moment: the service's own answer takes the place of the page's.
  async function confirm(live, asked) {
    const { weights, skew } = question;
    context.keepAddress(fragmentOf("compare", question));
    underway?.abort();
    const mine = new AbortController();
    underway = mine;
    try {
      const { answer } = await post("v1/tournaments", requestOf({ ...asked, weights, skew }), { signal: mine.signal });
      const [tournament] = answer.tournaments;
      if (underway === mine && !tournament.error) draw(live, asked, tournament, answer);
    } catch (error) {
      if (error.name !== "AbortError" && underway === mine) live.prepend(el("p", { class: "problem", role: "alert" }, inWords(error)));
    }
  }
}

async function answersTo(question, context, signal) {
  const named = (name) => context.models.find((model) => model.id === name);
  const asked = [question.model, ...(question.second ? [question.second] : [])];
  const model = named(question.model);
  try {
    const [ours, theirs] = await Promise.all(asked.map((one) => post("v1/tournaments", requestOf(question, one), { signal })));
    return { ours, theirs, model, rewards: await ratings(question, model, signal) };
  } catch (error) {
    if (error.code !== "preferences_unavailable" || !model?.attributes.length) throw error;
    return { unweighed: error, model, rewards: await ratings(question, model, signal) };
  }
}

// What the sliders need. Cached by now, so that it costs no forward pass.
async function ratings(question, model, signal) {
  if (!model?.attributes.length && model?.kind !== "hybrid") return null;
  const prompt = promptOf(question);
  const items = question.responses.map((response) => ({ prompt, response, ...(question.principle && { principle: question.principle }) }));
  const { answer } = await post("v1/rewards", { model: model.id, items, return: ["representation"], on_error: "report" }, { signal });
  return answer.rewards;
}

function draw(live, question, tournament, answer) {
  const { matrix, ranking } = tournament;
  const { responses } = question;
  if (ranking.length < 2) {
    live.replaceChildren(el("h2", { class: "headline" }, headline(tournament)));
    return;
  }
  const circle = circleOf(matrix);
  // Where no one leads, the closest pair of a ranking says little: the first arrow of the circle is shown.
  const [first, second] = circle ?? ranking;
  const pair = duel(matrix, first, second, answer);
  const width = Math.max(280, Math.min(WIDEST_GRAPH, live.clientWidth || WIDEST_GRAPH));
  const several = ranking.length > 2;
  live.replaceChildren(
    el("h2", { class: circle ? "headline circling" : "headline" }, headline(tournament)),
    pair.element,
    ...(several
      ? [
          el(
            "div",
            { class: "pictures" },
            figure("Who beats whom", graph(matrix, responses, width, pair.choose)),
            figure("Probability that the row is preferred to the column", scrolling("Table of probabilities", heatmap(matrix, responses, ranking, pair.choose))),
          ),
        ]
      : []),
    figure(several ? "Order by win rate, beside the mixture that none beats" : "Standing", scrolling("Standing", standing(tournament, responses))),
  );
}

function figure(caption, content) {
  return el("figure", {}, el("figcaption", {}, caption), content);
}

// What may be wider than a phone is moved in its own box, by keys too.
function scrolling(name, content) {
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": name }, content);
}

function secondModel(question, tournament, theirs) {
  if (!theirs) return null;
  const [other] = theirs.answer.tournaments;
  const error = tournament.error ?? other.error;
  if (error) return el("p", { class: "problem" }, error.message);
  return versus([question.model, question.second], [tournament, other]);
}

function costs({ answer, timings }) {
  const { usage, model, fingerprint } = answer;
  const count = (number, one) => `${number.toLocaleString("en")} ${one}${number === 1 ? "" : "s"}`;
  const parts = [`${count(usage.forward_responses, "response")} run (${count(usage.forward_tokens, "token")})`, `${usage.cached_responses} from the cache`];
  if (usage.truncated) parts.push(`${count(usage.truncated, "prompt")} cut`);
  if (usage.not_shown) parts.push(`${count(usage.not_shown, "conversation")} not shown in full`);
  if (usage.judge_calls) parts.push(`${count(usage.judge_calls, "call")} to the judge (${count(usage.judge_tokens ?? 0, "token")})`);
  if (usage.judge_cost) parts.push(`cost ${usage.judge_cost.toPrecision(3)}`);
  const times = Object.entries(timings)
    .filter(([, milliseconds]) => milliseconds > 0)
    .map(([name, milliseconds]) => `${name} ${milliseconds < 10 ? milliseconds.toFixed(1) : Math.round(milliseconds)} ms`);
  return el(
    "p",
    { class: "costs soft small" },
    `${parts.join(" · ")} · ${times.join(", ")} · `,
    el("span", { title: `fingerprint ${fingerprint}` }, `${model} ${fingerprint.slice(0, 8)}`),
  );
}

function circleOf(matrix) {
  const [top] = groupsOf(matrix);
  const ring = ringOf(top, matrix);
  const runs = ring.length > 2 && ring.every((one, at) => matrix[one][ring[(at + 1) % ring.length]] > 0.5);
  return runs ? ring : null;
}

/** Return the result of a tournament as a sentence. */
export function headline({ matrix, ranking, condorcet_winner: winner }) {
  if (ranking.length < 2) return "There is nothing to compare.";
  if (ranking.length === 2) {
    const [first, second] = ranking;
    const probability = matrix[first][second];
    if (probability === 0.5) return `${letter(first)} and ${letter(second)} are level.`;
    return `${letter(first)} is preferred, with probability ${written(probability)}.`;
  }
  if (winner !== null) return `${letter(winner)} beats every other response.`;
  const circle = circleOf(matrix);
  if (!circle) return `No response beats all others: ${listed(groupsOf(matrix)[0].map(letter))} are level.`;
  if (circle.length > 4) return `No response is best: ${listed(circle.map(letter))} beat one another in a circle.`;
  const wins = circle.map((one, at) => `${letter(one)} beats ${letter(circle[(at + 1) % circle.length])}`);
  return `No response is best: ${listed(wins)}.`;
}
