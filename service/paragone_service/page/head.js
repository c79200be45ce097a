// A head fitted to judgements: which model's backbone, under which name, and how the two compare on pairs kept back.

import { ApiError, inWords, post } from "./api.js";
import { el, freshId } from "./dom.js";
import { blank, fragmentOf } from "./state.js";

const KINDS = new Set(["bradley-terry", "regression", "helpsteer", "general-preference", "hybrid"]);
const FEWEST = 3;

/** Return `{element, draw}` of a panel that fits a head to what `judged` returns; `draw` when that has changed. */
export function headPanel(context, judged) {
  const [modelId, nameId, kindId] = [freshId("base"), freshId("name"), freshId("kind")];
  const model = el("select", { id: modelId });
  const name = el("input", { id: nameId, value: "mine", maxlength: 128, spellcheck: false, autocomplete: "off" });
  const kind = el("select", { id: kindId },
    el("option", { value: "bradley-terry" }, "one reward"),
    el("option", { value: "general-preference" }, "vectors, which may run in circles"));
  const enough = el("p", { class: "soft small" });
  const fit = el("button", { type: "submit", class: "strong" }, "Fit a head");
  const outcome = el("div", { class: "outcome" });
  const form = el("form", {
    class: "fit",
    onsubmit: (event) => {
      event.preventDefault();
      run();
    },
  },
  el("div", {}, el("label", { for: modelId }, "On the backbone of"), model),
  el("div", {}, el("label", { for: nameId }, "Name of the new model"), name),
  el("div", {}, el("label", { for: kindId }, "Kind"), kind),
  fit);
  const element = el("section", { class: "panel", "aria-label": "Head", hidden: true },
    el("h2", {}, "A model that learns them"),
    el("p", { class: "soft small" }, "A small head is fitted to a hosted model, which stays as it is; a quarter of the prompts is kept back, and both answer there. It takes seconds, and the key of an admin where the server has keys."),
    form, enough, outcome);

  function draw() {
    const rows = judged();
    const prompts = new Set(rows.filter((one) => one.strength).map((one) => JSON.stringify(one.prompt))).size;
    element.hidden = !rows.length;
    fit.disabled = prompts < FEWEST;
    fit.textContent = `Fit a head on ${rows.length} judgements`;
    enough.textContent = prompts < FEWEST
      ? `A fit needs preferences on ${FEWEST} prompts at the least; so far there are ${prompts}.`
      : prompts < 24 ? "It learns little from so few, and the comparison says so: some dozens of prompts are better." : "";
    if (!model.options.length) list();
  }

  function list() {
    const chosen = model.value;
    model.replaceChildren(...context.models.filter((one) => KINDS.has(one.kind)).map((one) => el("option", { value: one.id }, one.id)));
    if (chosen) model.value = chosen;
    name.value = fresh(name.value);
  }

  function fresh(wanted) {
    const taken = new Set(context.models.map((one) => one.id));
    if (!taken.has(wanted)) return wanted;
    const stem = wanted.replace(/-\d+$/, "");
    let number = 2;
    while (taken.has(`${stem}-${number}`)) number += 1;
    return `${stem}-${number}`;
  }

  async function run() {
    const rows = judged();
    fit.disabled = true;
    element.setAttribute("aria-busy", "true");
    context.announce("Fitting.");
    outcome.replaceChildren(el("p", { class: "soft" }, "Fitting…"));
    try {
      const body = { model: model.value, name: name.value.trim(), kind: kind.value, pairs: rows };
      const { answer } = await post("v1/heads", body);
      await context.modelsChanged();
      list();
      show(answer, rows);
    } catch (error) {
      const keyed = error instanceof ApiError && (error.wantsKey || error.code === "not_allowed");
      if (keyed) context.askForKey(run, "Fitting a head needs the key of an admin (paragone key new --admin).");
      outcome.replaceChildren(el("p", { class: "problem", role: "alert" }, inWords(error)));
    } finally {
      element.removeAttribute("aria-busy");
      draw();
    }
  }

  function show(answer, rows) {
    const words = verdict(answer);
    const both = beside(answer, rows);
    const { agreement } = answer;
    const low = (share) => Math.round(100 * share);
    const line = (id, share) =>
      el("tr", {},
        el("th", { scope: "row" }, id),
        el("td", { class: "number" }, `${Math.round(share.share * agreement.pairs)} of ${agreement.pairs}`),
        el("td", { class: "number" }, `${low(share.share)} % (${low(share.low)}–${low(share.high)} %)`),
        el("td", {}, el("div", { class: "interval", "aria-hidden": "true", style: { "--low": share.low, "--high": share.high, "--at": share.share } })));
    const table = el("table", { class: "agreement" },
      el("thead", {}, el("tr", {}, ...["Model", "As you", "Share, 95 % interval", ""].map((one) => (one ? el("th", { scope: "col" }, one) : el("td", {}))))),
      el("tbody", {}, line(answer.model.id, agreement.new), agreement.old ? line(answer.base, agreement.old) : null));
    const kept = answer.temporary
      ? "It is gone when the server ends: start that with --models-dir to keep it, or train one on the downloaded file."
      : `It lies in ${answer.folder}.`;
    outcome.replaceChildren(
      el("p", { class: "headline" }, words),
      table,
      el("p", { class: "soft small" }, `Fitted to ${answer.pairs} pairs of ${answer.prompts} prompts; compared on ${agreement.pairs} of ${agreement.prompts} others. ${kept}`),
      el("div", { class: "row" },
        el("a", { class: "button", href: both, onclick: () => context.follows(both) }, `Try ${answer.model.id} beside ${answer.base}`),
        el("button", { type: "button", class: "quiet", onclick: () => letGo(answer.model.id) }, "Unload it")),
    );
    context.announce(words);
  }

  async function letGo(id) {
    try {
      await post(`v1/models/${encodeURIComponent(id)}:unload`, {});
      await context.modelsChanged();
      list();
      outcome.replaceChildren(el("p", {}, `${id} is hosted no more.`));
    } catch (error) {
      outcome.prepend(el("p", { class: "problem", role: "alert" }, inWords(error)));
    }
  }

  return { element, draw };
}

/** Return in a sentence whether a fitted head is better than the model before it, on pairs kept back. */
export function verdict({ model, base, agreement }) {
  const { pairs, new: fresh, old, difference } = agreement;
  const mine = `${model.id} agrees with you on ${Math.round(fresh.share * pairs)} of ${pairs} pairs kept back`;
  if (!old) return `${mine}; ${base} compares nothing.`;
  const both = `${mine}, ${base} on ${Math.round(old.share * pairs)}`;
  const points = (value) => `${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(Math.round(100 * value))}`;
  const range = `${points(difference.low)} to ${points(difference.high)} points`;
  if (difference.low > 0) return `${both}: better, by ${range}.`;
  if (difference.high < 0) return `${both}: worse, by ${range}.`;
  return `${both}. That may be chance (${range}): judge more.`;
}

// A question that both models can be asked at once: one of the pairs that were judged.
function beside(answer, rows) {
  const one = rows.find((row) => [row.prompt, row.first, row.second].every((part) => typeof part === "string"));
  const question = { ...blank(), model: answer.model.id, second: answer.base };
  if (one) {
    question.turns = [{ role: "user", content: one.prompt }];
    question.responses = [one.first, one.second];
  }
  return fragmentOf("compare", question);
}
