// The view for judging by hand: a file, its pairs one after the other, and a head that learns what was said.

import { el } from "./dom.js";
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
      const side = (name, value) => el("div", { class: "side-text" }, el("h3", {}, ...named(name)), el("div", { class: "whole" }, textOf(value) || "(empty)"));
      return [
        el("div", { class: "row spread" }, el("h2", {}, "Which response is better?"), el("span", { class: "soft small" }, `${left} left`)),
        el("div", { class: "asked whole" }, promptText(pair.prompt)),
        el("div", { class: "sides" }, side(LEFT, one), side(RIGHT, other)),
        el("div", { class: "row verdicts" },
          verdict([...named(LEFT), " is better"], "←", () => say(1)),
          verdict("A tie", "Space", () => say(0)),
          verdict([...named(RIGHT), " is better"], "→", () => say(-1)),
          verdict("Pass over", "S", () => say(null))),
        undoRow(),
      ];
    }

    function verdict(words, key, onclick) {
      return el("button", { type: "button", onclick }, words, " ", el("kbd", { "aria-hidden": "true" }, key));
    }

    function undoRow() {
      return el("div", { class: "row" },
        el("button", { type: "button", class: "quiet small", onclick: undo }, "Undo ", el("kbd", { "aria-hidden": "true" }, "U")),
        el("span", { class: "soft small" }, "The keys work while this box has the focus."));
    }

    function say(left) {
      const { pair } = labels.next();
      if (!pair) return;
      const strength = left === null ? null : turned(pair) ? -left : left;
      labels.judge(pair, strength === 0 ? 0 : strength); // no minus zero in a file
      const words = { 1: "The first is better", 0: "A tie", "-1": "The second is better" }[left] ?? "Passed over";
      context.announce(`${words}. ${labels.next().left} left.`);
      card.focus(); // else Space would press the button that was clicked
    }

    function undo() {
      context.announce(labels.undo() ? "Taken back." : "There is nothing to take back.");
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
        if (window.confirm(`Forget ${judged.length} judgements? They are in this browser alone.`)) labels.clear();
      } }, "Forget them");
      return [
        el("h2", {}, "Your judgements"),
        el("p", {}, `${judged.length} pairs judged, ${ties} of them ties. They are kept in this browser.`,
          labels.whole ? "" : " The rest of the file is too large for it, and has to be dropped again after a reload."),
        el("div", { class: "row" }, download, el("span", { class: "soft small" }, "A file of pairs that train head, train model and eval read."), clear),
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
