// The same question from a shell and from Python.

import { el, freshId } from "./dom.js";
import { promptOf, requestOf } from "./state.js";

/** Return the commands as texts, by the name of what runs them. */
export function snippets(question, models, origin, needsKey) {
  return { curl: curl(question, models, origin, needsKey), Python: python(question, models, origin, needsKey) };
}

function curl(question, models, origin, needsKey) {
  const key = needsKey ? ' \\\n  -H "authorization: Bearer $PARAGONE_API_KEY"' : "";
  const commands = models.map((model) => {
    const body = JSON.stringify(requestOf(question, model), null, 1).replaceAll("'", "'\\''");
    return `curl -s ${origin}/v1/tournaments -H 'content-type: application/json'${key} -d '${body}'`;
  });
  return commands.join("\n\n");
}

function python(question, models, origin, needsKey) {
  // A text of JSON is a text of Python, and so are lists and objects that hold texts and numbers alone.
  const responses = question.responses.map((one) => `    ${JSON.stringify(one)},\n`).join("");
  return [
    ...(needsKey ? ["import os", ""] : []),
    "from paragone import Client",
    "",
    `client = Client(${JSON.stringify(origin)}${needsKey ? ', api_key=os.environ["PARAGONE_API_KEY"]' : ""})`,
    `prompt = ${JSON.stringify(promptOf(question))}`,
    `responses = [\n${responses}]`,
    ...models.flatMap((model) => [
      `tournament = client.tournament(prompt, responses, ${keywords(requestOf(question, model)).join(", ")})`,
      "print(tournament.win_rates, tournament.nash)",
    ]),
  ].join("\n");
}

function keywords({ model, groups: [group], return: added, comparisons, fit, weights, skew_weight: skew }) {
  const { principle, criteria } = group;
  const named = { model, return_: added, principle, criteria, comparisons, fit, weights, skew_weight: skew };
  return Object.entries(named).filter(([, value]) => value !== undefined).map(([name, value]) => `${name}=${JSON.stringify(value)}`);
}

/** Return a folded section with the commands for these models and a button that copies each. */
export function snippetSection(question, models, context) {
  const origin = new URL(".", document.baseURI).href.replace(/\/$/, "");
  const blocks = Object.entries(snippets(question, models, origin, context.needsKey)).map(([name, text]) => {
    const id = freshId("snippet");
    const copy = el("button", {
      type: "button",
      class: "quiet small",
      "aria-describedby": id,
      onclick: async () => {
        try {
          await navigator.clipboard.writeText(text);
          context.announce(`${name} copied.`);
          copy.textContent = "Copied";
        } catch {
          // Browsers keep the clipboard from pages without TLS, but for loopback: then it is selected, to be copied.
          getSelection().selectAllChildren(block);
          copy.textContent = "Selected";
        }
      },
    }, "Copy");
    const block = el("code", {}, text);
    return el("div", { class: "snippet" }, el("div", { class: "row spread" }, el("h3", { id }, name), copy), el("pre", { tabindex: 0, role: "region", "aria-label": `${name} code` }, block));
  });
  return el("details", { class: "folded" }, el("summary", {}, "The same request in code"), ...blocks);
}
