// The same question from a shell and from Python.

import { el, freshId } from "./dom.js";
import { promptOf, requestOf } from "./state.js";

/** Return the commands as texts, by the name of what runs them. */
export function snippets(question, origin, needsKey) {
  return { curl: curl(question, origin, needsKey), Python: python(question, origin, needsKey) };
}

function curl(question, origin, needsKey) {
  const body = JSON.stringify(requestOf(question), null, 1).replaceAll("'", "'\\''");
  const key = needsKey ? ' \\\n  -H "authorization: Bearer $PARAGONE_API_KEY"' : "";
  return `curl -s ${origin}/v1/tournaments -H 'content-type: application/json'${key} -d '${body}'`;
}

function python(question, origin, needsKey) {
  // A text of JSON is a text of Python, and so are lists and objects that hold texts and numbers alone.
  const prompt = JSON.stringify(promptOf(question));
  const responses = question.responses.map((one) => `    ${JSON.stringify(one)},\n`).join("");
  const more = [
    question.principle ? `, principle=${JSON.stringify(question.principle)}` : "",
    question.weights ? `, weights=${JSON.stringify(question.weights)}` : "",
    question.skew === null ? "" : `, skew_weight=${question.skew}`,
  ].join("");
  return [
    ...(needsKey ? ["import os", ""] : []),
    "from paragone import Client",
    "",
    `client = Client(${JSON.stringify(origin)}${needsKey ? ', api_key=os.environ["PARAGONE_API_KEY"]' : ""})`,
    `responses = [\n${responses}]`,
    `tournament = client.tournament(${prompt}, responses, model=${JSON.stringify(question.model)}, return_=["matrix"]${more})`,
    "print(tournament.win_rates, tournament.nash)",
  ].join("\n");
}

/** Return a folded section with the commands and a button that copies each. */
export function snippetSection(question, context) {
  const origin = new URL(".", document.baseURI).href.replace(/\/$/, "");
  const blocks = Object.entries(snippets(question, origin, context.needsKey)).map(([name, text]) => {
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
    return el("div", { class: "snippet" }, el("div", { class: "row spread" }, el("h3", { id }, name), copy), el("pre", { tabindex: 0 }, block));
  });
  return el("details", { class: "folded" }, el("summary", {}, "The same from a program"), ...blocks);
}
