// The view for judging by hand: a file, its pairs one after the other, and a head that learns what was said.

import { count, el } from "./dom.js";
import { filePanel, promptText, textOf } from "./files.js";
import { headPanel } from "./head.js";
import { asLines, distinct, keyOf, labels, whenJudged } from "./labels.js";

// The two stand beside each other, or, where there is no room, one above the other.
const LEFT = { wide: "Left", narrow: "The upper one" };
const RIGHT = { wide: "Right", narrow: "The lower one" };
const named = ({ wide, narrow }) => [el("span", { class: "wide" }, wide), el("span", { class: "narrow" }, narrow)];

export const label = {
  id: "label",
  title: "Judge",
  open(root, context) {
    const card = el("section", { class: "panel card", "aria-label": "Judging", tabindex: 0, onkeydown: pressed });
    const progress = el("section", { class: "panel", "aria-label": "Judgements" });
    const head = headPanel(context, () => labels.judged.filter(distinct));
    const files = filePanel(context, {
      judge(pairs) {
        labels.ask(pairs);
        card.focus();
        card.scrollIntoView({ block: "start" });
      },
    });
    root.append(files.element, card, progress, head.element);
    whenJudged(root, draw);
    draw();
    return { modelsChanged: head.modelsChanged };

    function draw() {
      const { pair, left } = labels.next();
      const { judged } = labels;
      card.hidden = !pair && !judged.length;
      card.replaceChildren(...(pair ? asked(pair, left) : [el("h2", {}, "All pairs are judged."), undoRow()]));
      progress.hidden = !judged.length;
      progress.replaceChildren(...(judged.length ? told(judged) : []));
      head.draw();
    }

    function asked(pair, left) {
      const [one, other] = shown(pair);
      const side = (name, value) => el("div", { class: "side-text", tabindex: 0, role: "region", "aria-label": name.wide }, el("h3", {}, ...named(name)), el("div", { class: "whole", dir: "auto" }, textOf(value) || el("i", { class: "soft" }, "empty")));
      return [
        el("div", { class: "row spread" }, el("h2", {}, "Which response is better?"), el("span", { class: "soft small" }, `${left} left`)),
        el("div", { class: "asked whole", dir: "auto", tabindex: 0, role: "region", "aria-label": "Prompt" }, promptText(pair.prompt)),
        el("div", { class: "sides" }, side(LEFT, one), side(RIGHT, other)),
        el("div", { class: "row verdicts" },
          verdict([...named(LEFT), " is better"], "←", () => say(1)),
          verdict("Tie", "Space", () => say(0)),
          verdict([...named(RIGHT), " is better"], "→", () => say(-1)),
          verdict("Skip", "S", () => say(null))),
        undoRow(),
      ];
    }

    function verdict(words, key, onclick) {
      return el("button", { type: "button", onclick }, words, " ", el("kbd", { "aria-hidden": "true" }, key));
    }

    function undoRow() {
      return el("div", { class: "row" },
        el("button", { type: "button", class: "quiet small", onclick: undo }, "Undo ", el("kbd", { "aria-hidden": "true" }, "U")),
        el("span", { class: "soft small" }, "The keys work while this box is focused."));
    }

    function say(left) {
      const { pair } = labels.next();
      if (!pair) return;
      const strength = left === null ? null : turned(pair) ? -left : left;
      labels.judge(pair, strength === 0 ? 0 : strength); // no minus zero in a file
      const words = { 1: "The first is better", 0: "Tie", "-1": "The second is better" }[left] ?? "Skipped";
      context.announce(`${words}. ${labels.next().left} left.`);
      card.focus(); // else Space would press the button that was clicked
    }

    function undo() {
      context.announce(labels.undo() ? "Undone." : "There is nothing to undo.");
      card.focus();
    }

    function pressed(event) {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const onButton = event.target !== card && event.key === " ";
      const does = { ArrowLeft: () => say(1), ArrowRight: () => say(-1), " ": () => say(0), s: () => say(null), u: undo }[event.key];
      if (!does || onButton) return;
      event.preventDefault();
      does();
    }

    function told(judged) {
      const ties = judged.filter((one) => !one.strength).length;
      const download = el("button", { type: "button", onclick: () => save(asLines(judged)) }, "Download");
      const clear = el("button", { type: "button", class: "quiet", onclick: () => {
        if (window.confirm(`Delete ${count(judged.length, "judgement")}? They are stored in this browser only.`)) labels.clear();
      } }, "Delete them");
      return [
        el("h2", {}, "Your judgements"),
        el("p", {}, `${count(judged.length, "pair")} judged${ties ? ` (${count(ties, "tie")})` : ""}. Your judgements are stored in this browser only.`,
          labels.whole ? "" : " The other pairs of the file are too large to store: after a reload, choose the file again."),
        el("div", { class: "row" }, download, el("span", { class: "soft small" }, "A file of pairs for paragone train head, train model and eval."), clear),
      ];
    }
  },
};

// Whoever prefers the left side out of habit is to spoil nothing: which response stands left is chance, by its text.
function turned(pair) {
  let hash = 2166136261;
  for (const character of keyOf(pair)) hash = Math.imul(hash ^ character.codePointAt(0), 16777619);
  return ((hash >>> 13) & 1) === 1;
}

function shown(pair) {
  return turned(pair) ? [pair.second, pair.first] : [pair.first, pair.second];
}

function save(text) {
  const address = URL.createObjectURL(new Blob([text], { type: "application/jsonl" }));
  const link = el("a", { href: address, download: "judgements.jsonl" });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
