// A head fitted to judgements: which model's backbone, under which name, and how the two compare on held-out pairs.

import { ApiError, inWords, post } from "./api.js";
import { count, el, freshId } from "./dom.js";
import { blank, fragmentOf, isBlank } from "./state.js";

const KINDS = new Set(["bradley-terry", "regression", "helpsteer", "general-preference", "hybrid"]);
const FEWEST = 3;

/** Return `{element, draw}` of a panel that fits a head to what `judged` returns; `draw` when that has changed. */
export function headPanel(context, judged) {
  const [modelId, nameId, kindId] = [freshId("base"), freshId("name"), freshId("kind")];
  const model = el("select", { id: modelId });
  const name = el("input", { id: nameId, value: "mine", maxlength: 128, spellcheck: false, autocomplete: "off" });
  const kind = el("select", { id: kindId },
    el("option", { value: "bradley-terry" }, "reward: one number per response"),
    el("option", { value: "general-preference" }, "general preference: may run in circles"));
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
  el("div", {}, el("label", { for: modelId }, "Base model"), model),
  el("div", {}, el("label", { for: nameId }, "Name of the new model"), name),
  el("div", {}, el("label", { for: kindId }, "Kind"), kind),
  fit);
  const element = el("section", { class: "panel", "aria-label": "Head", hidden: true },
    el("h2", {}, "Fit a model to your judgements"),
    el("p", { class: "soft small" }, "Fits a small new head on top of a hosted model, within seconds; the model itself does not change. A quarter of the prompts is held out, and both models are compared on it. If the server has keys, this needs an admin key."),
    form, enough, outcome);

  function draw() {
    const rows = judged();
    const prompts = new Set(rows.filter((one) => one.strength).map((one) => JSON.stringify(one.prompt))).size;
    if (!model.options.length) list();
    element.hidden = !rows.length;
    fit.disabled = prompts < FEWEST || !model.options.length;
    fit.textContent = `Fit a head on ${count(rows.length, "judgement")}`;
    enough.textContent = !model.options.length ? "No hosted model can take a new head."
      : prompts < FEWEST ? `A fit needs preferences on at least ${FEWEST} prompts. So far: ${prompts}.`
      : prompts < 24 ? "With so few prompts the head learns little: a few dozen are better." : "";
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
      show(answer, rows);
    } catch (error) {
      const keyed = error instanceof ApiError && (error.wantsKey || error.code === "not_allowed");
      if (keyed) context.askForKey(run, "Fitting a head needs an admin key (paragone key new --admin).");
      outcome.replaceChildren(el("p", { class: "problem", role: "alert" }, inWords(error)));
    } finally {
      element.removeAttribute("aria-busy");
      draw();
    }
  }

  function show(answer, rows) {
    const words = verdict(answer);
    const link = el("a", { class: "button", href: "#compare", onclick: () => {
      link.href = beside(answer, rows, context.question); // what is written by now
      context.follows(link.hash);
    } }, `Try ${answer.model.id} beside ${answer.base}`);
    const { agreement } = answer;
    const low = (share) => Math.round(100 * share);
    const line = (id, share) =>
      el("tr", {},
        el("th", { scope: "row" }, id),
        el("td", { class: "number" }, `${Math.round(share.share * agreement.pairs)} of ${agreement.pairs}`),
        el("td", { class: "number" }, `${low(share.share)} % (${low(share.low)}–${low(share.high)} %)`),
        el("td", {}, el("div", { class: "interval", "aria-hidden": "true", style: { "--low": share.low, "--high": share.high, "--at": share.share } })));
    const table = el("table", { class: "agreement" },
      el("thead", {}, el("tr", {}, ...["Model", "Agrees with you", "Share (95 % interval)", ""].map((one) => (one ? el("th", { scope: "col" }, one) : el("td", {}))))),
      el("tbody", {}, line(answer.model.id, agreement.new), agreement.old ? line(answer.base, agreement.old) : null));
    const kept = answer.temporary
      ? "It is lost when the server stops. To keep one, start the server with --models-dir, or train on the downloaded file."
      : `It is saved in ${answer.folder}.`;
    outcome.replaceChildren(
      el("p", { class: "headline" }, words),
      table,
      el("p", { class: "soft small" }, `Fitted to ${count(answer.pairs, "pair")} from ${count(answer.prompts, "prompt")}, and compared on ${count(agreement.pairs, "held-out pair")} from ${count(agreement.prompts, "other prompt")}. ${kept}`),
      el("div", { class: "row" },
        link,
        el("button", { type: "button", class: "quiet", onclick: () => letGo(answer.model.id) }, `Unload ${answer.model.id}`)),
    );
    context.announce(words);
  }

  async function letGo(id) {
    try {
      await post(`v1/models/${encodeURIComponent(id)}:unload`, {});
      await context.modelsChanged();
      outcome.replaceChildren(el("p", {}, `${id} was unloaded.`));
    } catch (error) {
      outcome.prepend(el("p", { class: "problem", role: "alert" }, inWords(error)));
    }
  }

  return { element, draw, modelsChanged: list };
}

/** Return in a sentence whether a fitted head is better than the model before it, on held-out pairs. */
export function verdict({ model, base, agreement }) {
  const { pairs, new: fresh, old, difference } = agreement;
  const mine = `${model.id} agrees with you on ${Math.round(fresh.share * pairs)} of ${count(pairs, "held-out pair")}`;
  if (!old) return `${mine}. ${base} cannot compare pairs.`;
  const both = `${mine}, ${base} on ${Math.round(old.share * pairs)}`;
  const points = (value) => `${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(Math.round(100 * value))}`;
  const range = `${points(difference.low)} to ${points(difference.high)} percentage points`;
  if (difference.low > 0) return `${both}. It is better, by ${range}.`;
  if (difference.high < 0) return `${both}. It is worse, by ${range}.`;
  return `${both}. The difference may be chance (${range}): judge more pairs to find out.`;
}

// A question that both models can be asked at once: what somebody has written, else one of the pairs that were judged.
function beside(answer, rows, written) {
  const models = { model: answer.model.id, second: answer.base };
  if (written && !isBlank(written)) return fragmentOf("compare", { ...written, ...models, weights: null, skew: null, comparisons: "all" });
  const one = rows.find((row) => [row.prompt, row.first, row.second].every((part) => typeof part === "string"));
  const question = { ...blank(), ...models };
  if (one) {
    question.turns = [{ role: "user", content: one.prompt }];
    question.responses = [one.first, one.second];
  }
  return fragmentOf("compare", question);
}
