// What a model rates, response by response, and sliders that weigh it. The answer to a moved slider is arithmetic on
// numbers that are here already, so it comes at once; the service's own follows.

import { el, freshId, letter } from "./dom.js";
import { skewTable, tableOf, tournamentOf } from "./table.js";

/** Return a section with the ratings and sliders of a model that has any, or null.
 *
 * `rewards` are those of the answer, with representations. `moved(tournament, change)` is called with what follows from
 * the sliders, and with what a request says for the same.
 */
export function attributes(model, rewards, question, moved) {
  const known = rewards.every((reward) => reward && !reward.error);
  if (!known) return null;
  if (model.kind === "hybrid") return skewSection(model, rewards, question, moved);
  if (!model.attributes.length) return null;
  const names = model.attributes;
  const own = names.map((name, index) => model.weights?.[index] ?? 0);
  const weights = Object.fromEntries(names.map((name, index) => [name, question.weights?.[name] ?? (question.weights ? 0 : own[index])]));
  const answer = () => {
    const merged = rewards.map((reward) => names.reduce((sum, name) => sum + weights[name] * reward.attributes[name], 0));
    moved(tournamentOf(tableOf(merged, model.temperature), merged), { weights: { ...weights } });
  };
  const sliders = names.map((name) =>
    slider(name, weights[name], Math.max(1, ...own.map(Math.abs)), (value) => {
      weights[name] = value;
      answer();
    }),
  );
  const reset = el("button", { type: "button", class: "quiet small", onclick: () => moved(null, { weights: null }) }, "Reset");
  const note = model.weights
    ? "How much each rating counts. The sliders start at the model's own weights."
    : "Move a slider to rank by a weighted sum of the ratings instead of the model's own reward.";
  return el(
    "section",
    { class: "attributes", "aria-label": "Ratings" },
    el("h2", {}, "Ratings"),
    el("div", { class: "scroll" }, ratings(names, rewards)),
    el("p", { class: "soft small" }, note, " ", reset),
    el("div", { class: "sliders" }, ...sliders),
  );
}

function ratings(names, rewards) {
  const spans = names.map((name) => {
    const values = rewards.map((reward) => reward.attributes[name]);
    return [Math.min(...values), Math.max(...values)];
  });
  const rows = rewards.map((reward, index) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, el("span", { class: "badge" }, letter(index))),
      ...names.map((name, column) => {
        const [least, most] = spans[column];
        const value = reward.attributes[name];
        const share = most > least ? (value - least) / (most - least) : 0.5;
        return el("td", { class: "bar rating", style: { "--p": 0.06 + 0.94 * share } }, value.toFixed(2));
      }),
    ),
  );
  return el(
    "table",
    { class: "standing ratings" },
    el("caption", { class: "unseen" }, "Predicted ratings of each response"),
    el("thead", {}, el("tr", {}, el("td"), ...names.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...rows),
  );
}

function slider(name, value, most, changed) {
  const id = freshId("weight");
  const shown = el("output", { for: id }, value.toFixed(2));
  const field = el("input", {
    id,
    type: "range",
    min: -most,
    max: most,
    step: 0.05,
    oninput: (event) => {
      shown.textContent = Number(event.target.value).toFixed(2);
      changed(Number(event.target.value));
    },
  });
  field.value = value;
  return el("div", { class: "slider" }, el("label", { for: id }, name), field, shown);
}

function skewSection(model, rewards, question, moved) {
  const representations = rewards.map((reward) => reward.representation);
  const start = question.skew ?? 1;
  const field = slider("cycles", start, 2, (value) => {
    moved(tournamentOf(skewTable(representations, model.temperature, Math.max(0, value))), { skew: Math.max(0, value) });
  });
  field.querySelector("input").min = 0;
  const reset = el("button", { type: "button", class: "quiet small", onclick: () => moved(null, { skew: null }) }, "Reset");
  return el(
    "section",
    { class: "attributes", "aria-label": "Reward and cycles" },
    el("h2", {}, "Reward and cycles"),
    el("p", { class: "soft small" }, "How much the part that can run in circles counts beside the reward. At 0, only the reward decides.", " ", reset),
    el("div", { class: "sliders" }, field),
  );
}
