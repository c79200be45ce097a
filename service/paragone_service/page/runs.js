// The view of runs: training and annotating that somebody watches with `paragone watch RUN --url`, as the service was told.

import { get, hasKey, inWords } from "./api.js";
import { chart, figure } from "./chart.js";
import { el } from "./dom.js";

const EVERY_MS = 2_000;
const AWAY_MS = 10_000;
const SILENT_S = 45; // a watcher sends something every ten seconds
const KINDS = { model: "train model", head: "train head", policy: "train policy" };
const STATES = {
  running: "running",
  done: "done",
  stopped: "stopped: nobody runs it any more",
  silent: "silent: it has written nothing for ten minutes",
};

export const runs = {
  id: "runs",
  title: "Runs",
  open(root, context) {
    const entries = new Map();
    const list = el("ul", { class: "run-list" });
    const problem = el("p", { class: "problem", role: "alert", hidden: true });
    const none = el("p", { hidden: true });
    const shown = detail();
    let chosen = null;
    let timer = null;
    let asking = false;
    let again = false; // another run was chosen while an answer was on its way
    root.append(el("section", { class: "asking", "aria-label": "Watched runs" }, problem, none, list), shown.element);
    document.addEventListener("visibilitychange", wake);
    window.addEventListener("hashchange", wake);
    wake();

    // Nothing is asked while nobody can see the answer.
    function wake() {
      if (!root.isConnected) leave();
      else if (document.hidden || root.hidden) rest();
      else if (timer === null && !asking) turn();
    }

    function rest() {
      clearTimeout(timer);
      timer = null;
    }

    function leave() {
      rest();
      document.removeEventListener("visibilitychange", wake);
      window.removeEventListener("hashchange", wake);
    }

    async function turn() {
      timer = null;
      asking = true;
      let next = EVERY_MS;
      try {
        await refresh();
        problem.hidden = true;
      } catch (error) {
        problem.textContent = inWords(error);
        problem.hidden = false;
        next = AWAY_MS;
      }
      asking = false;
      if (!root.isConnected) leave();
      else if (!document.hidden && !root.hidden) timer = setTimeout(turn, again ? 0 : next);
      again = false;
    }

    async function refresh() {
      const { runs: found } = (await get("v1/runs")).answer;
      listed(found);
      const one = found.find((run) => run.name === chosen) ?? found[0];
      shown.element.hidden = !one;
      if (!one) return;
      choose(one.name);
      if (!shown.has(one)) shown.show((await get(`v1/runs/${encodeURIComponent(one.name)}`)).answer, context);
      else shown.age(one);
    }

    function listed(found) {
      none.hidden = found.length > 0;
      list.hidden = found.length === 0;
      if (!found.length) none.replaceChildren("No run is watched here. This shows one: ", el("code", {}, command()));
      const names = new Set(found.map((run) => run.name));
      for (const [name, entry] of entries) {
        if (names.has(name)) continue;
        entry.element.remove();
        entries.delete(name);
      }
      found.forEach((run, at) => {
        if (!entries.has(run.name)) entries.set(run.name, entryOf(run.name));
        const entry = entries.get(run.name);
        entry.show(run);
        // Only what stands in another place is moved: moving takes the focus away.
        if (list.children[at] !== entry.element) list.insertBefore(entry.element, list.children[at] ?? null);
      });
    }

    function entryOf(name) {
      const words = el("span", { class: "small soft" });
      const state = el("span", { class: "small" });
      const bar = el("span", { class: "run-bar", "aria-hidden": "true" });
      const button = el("button", { type: "button", class: "run", onclick: () => open(name) },
        el("span", { class: "row spread" }, el("b", {}, name), state), bar, words);
      return {
        element: el("li", {}, button),
        mark: () => button.setAttribute("aria-pressed", String(name === chosen)),
        show(run) {
          state.textContent = `${run.kind}, ${old(run) ? "no news" : run.state}`;
          words.textContent = pace(run);
          draw(bar, run);
        },
      };
    }

    function choose(name) {
      chosen = name;
      for (const entry of entries.values()) entry.mark();
    }

    function open(name) {
      choose(name);
      again = asking;
      // Where there is one column, what was chosen stands below the list.
      if (matchMedia("(max-width: 60rem)").matches) shown.element.scrollIntoView({ block: "start" });
      if (asking) return;
      rest();
      turn();
    }
  },
};

function detail() {
  let kept = null;
  const charts = new Map();
  const title = el("h2", { class: "headline" });
  const state = el("p");
  const stage = el("p");
  const reach = el("p", { class: "soft" });
  const bar = el("div", { class: "run-bar", role: "progressbar", "aria-label": "Done" });
  const numbers = el("dl", { class: "run-numbers" });
  const drawings = el("div", { class: "charts" });
  const lines = el("pre", { class: "whole", tabindex: 0, role: "region", "aria-label": "What it said last" });
  const element = el("section", { class: "live", "aria-label": "Run", hidden: true },
    el("div", { class: "duel" }, title, state, stage, bar, reach), numbers, drawings, lines);

  function show(run, context) {
    const another = kept?.name !== run.name;
    if (!another && kept.state !== run.state) context.announce(`${run.name} is ${STATES[run.state] ?? run.state}.`);
    kept = run;
    title.textContent = run.name;
    draw(bar, run);
    numbers.replaceChildren(...Object.entries(run.numbers).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, figure(value)))));
    lines.textContent = run.lines.join("\n");
    lines.hidden = run.lines.length === 0;
    const series = Object.entries(run.series).filter(([, points]) => points.length);
    const names = new Set(series.map(([name]) => name));
    for (const [name, one] of charts) {
      if (!another && names.has(name)) continue;
      one.element.remove();
      charts.delete(name);
    }
    series.forEach(([name, points], at) => {
      if (!charts.has(name)) charts.set(name, chart(name, run.unit));
      const one = charts.get(name);
      one.draw(points);
      if (drawings.children[at] !== one.element) drawings.insertBefore(one.element, drawings.children[at] ?? null);
    });
    age(run);
  }

  function age(run) {
    const news = old(run) ? `. No news since ${clock(run)}: is it still watched?` : "";
    state.textContent = `${KINDS[run.kind] ?? run.kind}, ${STATES[run.state] ?? run.state}${news}`;
    stage.textContent = run.stage;
    reach.textContent = pace(run);
  }

  return { element, show, age, has: (run) => kept !== null && kept.name === run.name && kept.heard === run.heard };
}

function draw(bar, run) {
  const share = run.total ? Math.min(1, run.done / run.total) : run.state === "done" ? 1 : 0;
  bar.style.setProperty("--p", share);
  bar.classList.toggle("over", run.state === "stopped");
  if (bar.getAttribute("role") !== "progressbar") return;
  bar.setAttribute("aria-valuenow", Math.round(100 * share));
  bar.setAttribute("aria-valuetext", pace(run));
}

function old(run) {
  return run.state !== "done" && run.state !== "stopped" && run.since_s > SILENT_S;
}

function clock(run) {
  const then = new Date(Date.now() - 1_000 * run.since_s);
  return then.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
}

/** Return done, rate and time left in words. */
function pace(run) {
  const words = [`${figure(run.done)}${run.total === null ? "" : ` of ${figure(run.total)}`} ${run.unit}`];
  if (run.state === "running" && run.rate) words.push(often(run.rate));
  if (run.state === "running" && run.left_s !== null) words.push(`${duration(run.left_s)} left`);
  return words.join(", ");
}

function often(rate) {
  const [times, unit] = [[1, "second"], [60, "minute"], [3_600, "hour"]].find(([one]) => one * rate >= 1) ?? [3_600, "hour"];
  return `${figure(times * rate)} a ${unit}`.replace("a hour", "an hour");
}

/** Return a time in words, as exact as one wants it. */
function duration(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3_600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3_600)} h ${Math.floor((whole % 3_600) / 60)} min`;
}

function command() {
  const address = new URL(".", document.baseURI).href.replace(/\/$/, "");
  return `paragone watch runs/NAME --url ${address}${hasKey() ? " --api-key KEY" : ""}`;
}
