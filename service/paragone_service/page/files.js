// A data file, dropped or chosen: what it holds, its rows page by page, and its pairs for somebody to judge.

import { ApiError, inWords, postFile } from "./api.js";
import { count, el, freshId, letter, scrolling, shortened } from "./dom.js";

const PAGE_ROWS = 10;
const MOST_ROWS = 500;
const SHOWN = 110;

/** Return `{element}` of a panel that reads files; `judge` is called with pairs that somebody wants to judge. */
export function filePanel(context, { judge }) {
  let file = null;
  let offset = 0;
  let shown = 0;
  let total = 0;
  const input = el("input", { type: "file", id: freshId("file"), class: "unseen", onchange: () => take(input.files[0]) });
  const zone = el(
    "div",
    {
      class: "drop",
      ondragover: (event) => {
        event.preventDefault();
        zone.classList.add("over");
      },
      ondragleave: () => zone.classList.remove("over"),
      ondrop: (event) => {
        event.preventDefault();
        zone.classList.remove("over");
        take(event.dataTransfer.files[0]);
      },
    },
    input,
    el("p", {}, el("label", { for: input.id, class: "button" }, "Choose a file"), " or drop one here."),
    el("p", { class: "soft small" }, "Pairs, ratings, rankings or unrated responses, as JSON lines, CSV, Parquet and more, compressed or not. The server reads the file and does not keep it."),
  );
  const found = el("div", { class: "found" });
  const element = el("section", { class: "panel", "aria-label": "File" }, el("h2", {}, "Data file"), zone, found);

  async function take(chosen) {
    if (!chosen) return;
    file = chosen;
    offset = 0;
    await show();
    input.value = ""; // the same file may be chosen again after it was mended
  }

  async function show(focus = null) {
    element.setAttribute("aria-busy", "true");
    try {
      const answer = await page(offset, PAGE_ROWS);
      total = answer.read;
      shown = answer.rows.length;
      found.replaceChildren(...summary(answer), table(answer), pager(), ...actions(answer));
      if (focus) found.querySelector(`[data-page="${focus}"]`)?.focus();
      context.announce(`Rows ${offset + 1} to ${offset + answer.rows.length} of ${total}.`);
    } catch (error) {
      if (error instanceof ApiError && error.wantsKey) context.askForKey(() => show(focus));
      found.replaceChildren(el("p", { class: "problem", role: "alert" }, inWords(error)));
    } finally {
      element.removeAttribute("aria-busy");
    }
  }

  async function page(from, limit) {
    const query = new URLSearchParams({ name: file.name, offset: String(from), limit: String(limit) });
    return (await postFile(`v1/files?${query}`, file)).answer;
  }

  async function firstRows() {
    const rows = [];
    for (;;) {
      const answer = await page(rows.length, MOST_ROWS - rows.length);
      rows.push(...answer.rows);
      if (!answer.not_shown) return rows;
    }
  }

  function turn(by, name) {
    offset = Math.min(Math.max(0, offset + by), Math.max(0, total - 1));
    show(name);
  }

  function pager() {
    const button = (name, by, possible) =>
      el("button", { type: "button", "data-page": name, "aria-disabled": possible ? null : "true", onclick: () => possible && turn(by, name) }, name);
    const last = offset + shown; // of long rows the server may show fewer than were asked for
    return el(
      "div",
      { class: "row pager" },
      button("Previous", -PAGE_ROWS, offset > 0),
      button("Next", shown, last < total),
      el("span", { class: "soft small" }, `Rows ${offset + 1}–${last} of ${total.toLocaleString("en")}`),
    );
  }

  function actions(answer) {
    if (!answer.rows.some((row) => row.responses.length > 1)) {
      return [el("p", { class: "soft small" }, "No row has two responses to the same prompt, so there is nothing to judge.")];
    }
    const asked = async (event) => {
      const button = event.currentTarget;
      button.disabled = true;
      try {
        judge(pairsOf(await firstRows()));
      } catch (error) {
        found.prepend(el("p", { class: "problem", role: "alert" }, inWords(error)));
      } finally {
        button.disabled = false;
      }
    };
    const some = total > MOST_ROWS ? ` Only the first ${MOST_ROWS} rows are used.` : "";
    const known = answer.pairs ? " The labels in the file are not shown while you judge." : "";
    return [
      el("p", { class: "row" },
        el("button", { type: "button", class: "strong", onclick: asked }, "Judge its pairs"),
        el("span", { class: "soft small" }, `You choose the better of two responses.${known}${some}`)),
    ];
  }

  return { element };
}

/** Return the pairs of rows: two responses as they are, of several each with the next one. */
export function pairsOf(rows) {
  return rows.flatMap(({ prompt, responses }) =>
    responses.slice(1).map((second, at) => ({ prompt: plainPrompt(prompt), first: responses[at], second })),
  ).filter(({ first, second }) => textOf(first) !== textOf(second));
}

// A text and its one message are the same to the service; files of texts are easier on the eye.
function plainPrompt(messages) {
  const [only] = messages;
  const plain = messages.length === 1 && only.role === "user" && typeof only.content === "string" && Object.keys(only).length === 2;
  return plain ? only.content : messages;
}

/** Return a response, a message or messages as one text to read. */
export function textOf(value) {
  if (typeof value === "string") return value;
  if (Array.isArray(value)) return value.map((one) => `${one.role}: ${textOf(one)}`).join("\n\n");
  const { content, role, ...rest } = value ?? {};
  const said = typeof content === "string" ? content : JSON.stringify(content ?? "");
  return Object.keys(rest).length ? `${said}\n${JSON.stringify(rest)}` : said;
}

/** Return a prompt as one text to read. */
export function promptText(prompt) {
  if (typeof prompt === "string") return prompt;
  return prompt.length === 1 && prompt[0].role === "user" ? textOf(prompt[0]) : textOf(prompt);
}

function summary(answer) {
  const parts = [
    count(answer.read, "row"), count(answer.prompts, "prompt"), count(answer.responses, "response"),
    answer.pairs ? `${count(answer.pairs, "comparison")}${answer.ties ? ` (${count(answer.ties, "tie")})` : ""}` : null,
    answer.rated ? count(answer.rated, "rating") : null,
    answer.duplicates ? count(answer.duplicates, "duplicate") : null,
    answer.contradictions ? count(answer.contradictions, "contradiction") : null,
  ];
  const share = (value, words) => (value === null ? null : `${words} in ${Math.round(100 * value)} %`);
  const leans = [share(answer.first_preferred, "the first response is preferred"), share(answer.longer_preferred, "the longer one")].filter(Boolean);
  const lost = answer.left_out.reduce((sum, left) => sum + left.rows, 0);
  return [
    el("p", { class: "headline" }, answer.name),
    el("p", {}, el("b", {}, `Layout ${answer.layout}`), `: ${parts.filter(Boolean).join(", ")}.${leans.length ? ` Without ties, ${leans.join(", ")}.` : ""}`),
    lost ? el("details", { class: "left-out" }, el("summary", {}, `${count(lost, "row")} left out`),
      el("ul", {}, ...answer.left_out.map((left) => el("li", {}, `${left.rows} × ${left.reason} (line ${left.lines.join(", ")}${left.rows > left.lines.length ? ", …" : ""})`)))) : null,
  ].filter(Boolean);
}

function table(answer) {
  const head = el("tr", {}, ...["Line", "Prompt", "Responses", "Labels"].map((name) => el("th", { scope: "col" }, name)));
  const rows = answer.rows.map((row) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, String(row.line)),
      el("td", {}, folded(promptText(row.prompt))),
      el("td", {}, el("ol", { class: "lettered" }, ...row.responses.map((one, at) => el("li", {}, el("b", {}, letter(at)), folded(textOf(one)))))),
      el("td", {}, ...said(row)),
    ),
  );
  return scrolling("Rows of the file", el("table", { class: "rows" }, el("thead", {}, head), el("tbody", {}, ...rows)));
}

function said({ labels, ratings }) {
  const sentence = ({ first, second, strength }) => {
    if (!strength) return `${letter(first)} = ${letter(second)}`;
    const [better, worse] = strength > 0 ? [first, second] : [second, first];
    return `${letter(better)} over ${letter(worse)}${Math.abs(strength) === 1 ? "" : ` (${Number(Math.abs(strength).toFixed(2))})`}`;
  };
  const lines = [
    ...labels.slice(0, 6).map(sentence),
    ...ratings.slice(0, 6).map((one, at) => `${ratings.length > 1 ? `${letter(at)}: ` : ""}${Object.entries(one).map(([name, value]) => `${name} ${value}`).join(", ")}`),
  ];
  if (labels.length > 6 || ratings.length > 6) lines.push("…");
  return lines.length ? lines.map((line) => el("div", {}, line)) : [el("span", { class: "soft" }, "none")];
}

function folded(text) {
  const short = shortened(text, SHOWN);
  if (short === text) return text ? el("span", { dir: "auto" }, text) : el("i", { class: "soft" }, "empty");
  return el("details", { class: "folded" }, el("summary", { dir: "auto" }, short), el("div", { class: "whole", dir: "auto" }, text));
}
