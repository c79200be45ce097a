// The responses in order: how often each wins, beside its share of the Nash mixture.

import { el, letter, shortened, written } from "./dom.js";

/** Return the table of a tournament. */
export function standing(tournament, responses) {
  const { ranking, win_rates: rates, nash, copeland, intervals } = tournament;
  const unranked = responses.map((_, index) => index).filter((index) => !ranking.includes(index));
  const rows = [...ranking, ...unranked].map((index) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, el("span", { class: "badge" }, letter(index))),
      el("td", { class: "said", dir: "auto" }, shortened(responses[index], 90) || el("i", {}, "empty")),
      bar(rates[index], "win", intervals?.[index]),
      bar(nash[index], "nash"),
      el("td", { class: "n" }, copeland[index] === null ? "–" : signed(copeland[index])),
    ),
  );
  return el(
    "table",
    { class: "standing" },
    el("caption", { class: "unseen" }, "Responses by win rate, beside their share of the Nash mixture"),
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        el("td"),
        el("th", { scope: "col" }, "Response"),
        el("th", { scope: "col", title: "Mean probability of being preferred to a response of the group, itself counted as 0.50" }, "Win rate"),
        el("th", { scope: "col", title: "The mixture of responses that no response beats on average" }, "Nash mixture"),
        el("th", { scope: "col", class: "n", title: "Responses that it beats, minus responses that beat it" }, "Wins − losses"),
      ),
    ),
    el("tbody", {}, ...rows),
  );
}

/** Return a cell with a number in [0, 1], a bar of that length, and the interval in which the number lies, if known. */
export function bar(share, name, interval = null) {
  const range = interval ? el("small", { class: "soft", title: "95 % interval" }, ` ${written(interval[0])}–${written(interval[1])}`) : null;
  return el("td", { class: `bar ${name}`, style: { "--p": share ?? 0 } }, share === null ? "–" : written(share), range);
}

function signed(count) {
  return count > 0 ? `+${count}` : String(count).replace("-", "−");
}
