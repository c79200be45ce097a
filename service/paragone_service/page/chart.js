// One number over a run, as a line with axes. Hovering, or the arrow keys once it has the focus, gives the value at a point;
// the same numbers stand in a table below, for whoever cannot see the line.

import { el, scrolling, svg } from "./dom.js";

const [WIDE, HIGH] = [440, 190];
const [LEFT, RIGHT, TOP, BOTTOM] = [52, 10, 10, 24];
const LEVEL = 0.5;

/** Return a number as charts write it. */
export function figure(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(1).replace("e+", "e");
  return value.toLocaleString("en", { maximumSignificantDigits: 4 });
}

/** Return round numbers that lie within an interval, about so many. */
export function ticks(low, high, count) {
  const rough = (high - low) / count;
  if (!(rough > 1e-300 && rough < 1e300)) return [];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((one) => one * power >= rough) ?? 10);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, at) => (first + at) * step);
}

/** Return `{element, draw(points)}` of the chart of a number; points are `[x, y]`, x in `unit`. */
export function chart(name, unit) {
  let points = [];
  let chosen = null; // null: the last one, whatever comes
  const value = el("output", { class: "chart-value" });
  const drawing = svg("svg", {
    class: "chart", viewBox: `0 0 ${WIDE} ${HIGH}`, role: "slider", tabindex: 0, "aria-label": `${name}, point by point`,
    onkeydown: pressed,
    onpointermove: (event) => choose(nearest(event)),
    onpointerdown: (event) => choose(nearest(event)),
    onpointerleave: (event) => event.pointerType === "mouse" && choose(null), // a finger leaves before it was read
    onblur: () => choose(null),
  });
  const cursor = svg("g", { class: "cursor" });
  const rows = el("tbody");
  const table = el("table", { class: "agreement" },
    el("thead", {}, el("tr", {}, ...[unit, name].map((one) => el("th", { scope: "col" }, one)))), rows);
  const folded = el("details", { class: "folded", ontoggle: tabulate }, el("summary", {}, "As a table"),
    scrolling(`${name} as a table`, table));
  const element = el("figure", { class: "chart-figure", "data-series": name },
    el("figcaption", { class: "row spread" }, el("span", {}, `${name} over the ${unit}`), value), drawing, folded);

  let x = null;
  let y = null;

  function draw(fresh) {
    points = fresh;
    chosen = chosen !== null && chosen < points.length ? chosen : null;
    const [low, high] = range(points.map((point) => point[1]), name.startsWith("win rate") ? [LEVEL] : []);
    const [from, to] = range(points.map((point) => point[0]), []);
    x = (at) => LEFT + share(at, from, to) * (WIDE - LEFT - RIGHT);
    y = (at) => HIGH - BOTTOM - share(at, low, high) * (HIGH - TOP - BOTTOM);
    drawing.replaceChildren(...axes(low, high, from, to), ...line(), cursor);
    drawing.setAttribute("aria-valuemin", 0);
    drawing.setAttribute("aria-valuemax", points.length - 1);
    choose(chosen);
    if (folded.open) tabulate();
  }

  function axes(low, high, from, to) {
    const across = ticks(low, high, 4).flatMap((at) => [
      svg("path", { class: "grid", d: `M${LEFT} ${y(at)}H${WIDE - RIGHT}` }),
      svg("text", { x: LEFT - 6, y: y(at), class: "end" }, figure(at)),
    ]);
    // Between two iterations, or two steps, there is nothing where no number stands between them.
    const whole = points.every(([at]) => Number.isInteger(at));
    const along = ticks(from, to, 5).filter((at) => !whole || Number.isInteger(at)).map((at) => svg("text", { x: x(at), y: HIGH - 8 }, figure(at)));
    const level = name.startsWith("win rate") ? [svg("path", { class: "level", d: `M${LEFT} ${y(LEVEL)}H${WIDE - RIGHT}` })] : [];
    return [...across, ...along, ...level];
  }

  function line() {
    const places = points.map((point) => `${x(point[0]).toFixed(1)} ${y(point[1]).toFixed(1)}`);
    const dots = points.length > 30 ? [] : points.map((point) => svg("circle", { cx: x(point[0]), cy: y(point[1]), r: 2.5 }));
    return [svg("path", { class: "line", d: `M${places.join("L")}` }), ...dots];
  }

  function choose(index) {
    chosen = index;
    const at = index ?? points.length - 1;
    const [where, what] = points[at];
    value.textContent = index === null ? figure(what) : `${figure(what)} at ${figure(where)}`;
    drawing.setAttribute("aria-valuenow", at);
    drawing.setAttribute("aria-valuetext", `${figure(what)} at ${figure(where)} ${unit}`);
    cursor.replaceChildren(...(index === null ? [] : [
      svg("path", { d: `M${x(where)} ${TOP}V${HIGH - BOTTOM}` }),
      svg("circle", { cx: x(where), cy: y(what), r: 4 }),
    ]));
  }

  function nearest(event) {
    const box = drawing.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * WIDE;
    return points.reduce((best, point, index) => (Math.abs(x(point[0]) - at) < Math.abs(x(points[best][0]) - at) ? index : best), 0);
  }

  function pressed(event) {
    const last = points.length - 1;
    const now = chosen ?? last;
    const far = Math.max(1, Math.round(last / 10));
    const goes = { ArrowLeft: now - 1, ArrowDown: now - 1, ArrowRight: now + 1, ArrowUp: now + 1, PageDown: now - far, PageUp: now + far, Home: 0, End: last }[event.key];
    if (goes === undefined) return;
    event.preventDefault();
    choose(Math.min(Math.max(goes, 0), last));
  }

  function tabulate() {
    if (!folded.open) return;
    rows.replaceChildren(...points.map(([at, what]) => el("tr", {}, el("th", { scope: "row" }, figure(at)), el("td", {}, figure(what)))));
  }

  return { element, draw };
}

// How far a number lies between two others; in quarters, because their difference may be more than a number can be.
function share(at, low, high) {
  return (at / 4 - low / 4) / (high / 4 - low / 4);
}

// The least and the greatest of some numbers, with room around them where they are all one.
function range(values, more) {
  const all = [...values, ...more];
  const [low, high] = [Math.min(...all), Math.max(...all)];
  if (high - low > 1e-300) return [low, high];
  const room = Math.abs(low) / 10 || 1;
  return [low - room, high + room];
}
