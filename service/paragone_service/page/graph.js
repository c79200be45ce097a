// Who beats whom, as a drawing. Groups stand from left to right: whoever is in one beats all of every later one. Inside
// a group of several the wins run in circles, and so it is drawn: as a ring.

import { freshId, letter, listed, shortened, svg, written } from "./dom.js";
import { groupsOf, ringOf } from "./table.js";

const NODE = 17;
const GAP = 64;
const MARGIN = 14;
const MOST_LABELS = 6;

/** Return the drawing of a table, at most `width` pixels wide; `choose(first, second)` is called for an arrow. */
export function graph(matrix, responses, width, choose) {
  const groups = groupsOf(matrix).map((members) => ringOf(members, matrix));
  const { placed, wide, height } = layout(groups, width);
  const arrow = marker("arrow");
  const ringArrow = marker("ring-arrow");
  const drawing = svg(
    "svg",
    { class: "graph", viewBox: `0 0 ${wide} ${height}`, width: wide, height, role: "img", "aria-label": told(groups, matrix) },
    svg("defs", {}, arrow.element, ringArrow.element),
  );
  placed.forEach((group, at) => {
    if (at > 0) drawing.append(between(placed[at - 1], group, matrix, arrow.reference));
  });
  for (const group of placed) {
    if (group.members.length > 1) drawing.append(...ring(group, matrix, ringArrow.reference, arrow.reference));
  }
  for (const group of placed) {
    for (const [index, member] of group.members.entries()) drawing.append(node(member, group.at(index), responses, group));
  }
  drawing.addEventListener("click", (event) => {
    const edge = event.target.closest("[data-first]");
    if (edge) choose(Number(edge.dataset.first), Number(edge.dataset.second));
  });
  return drawing;
}

/** Return the drawing in words, for whoever cannot see it. */
export function told(groups, matrix) {
  const sentences = groups.map((members, at) => {
    const rest = at + 1 < groups.length ? ` and beat${members.length > 1 ? "" : "s"} all that follow` : "";
    if (members.length === 1) return rest ? `${letter(members[0])} beats all that follow.` : `${letter(members[0])} comes last.`;
    if (members.length === 2) return `${listed(members.map(letter))} are tied${rest}.`;
    const wins = members.map((one, place) => {
      const next = members[(place + 1) % members.length];
      return `${letter(one)} over ${letter(next)} ${written(matrix[one][next])}`;
    });
    return `${listed(members.map(letter))} run in a circle (${wins.join(", ")})${rest}.`;
  });
  return `Preference graph. ${sentences.join(" ")}`;
}

// Groups side by side, in rows where they are too wide for one.
function layout(groups, width) {
  const placed = [];
  let [x, y, tallest, wide] = [MARGIN, MARGIN, 0, 0];
  let row = [];
  const finishRow = () => {
    for (const group of row) group.y = y + tallest / 2;
    y += tallest + 26;
    [x, tallest, row] = [MARGIN, 0, []];
  };
  for (const members of groups) {
    const group = sized(members);
    if (row.length && x + 2 * group.outer > width - MARGIN) finishRow();
    group.x = x + group.outer;
    wide = Math.max(wide, x + 2 * group.outer + MARGIN);
    x += 2 * group.outer + GAP;
    tallest = Math.max(tallest, group.tall);
    row.push(group);
    placed.push(group);
  }
  finishRow();
  return { placed, wide: Math.ceil(wide), height: Math.ceil(y - 26 + MARGIN) };
}

function sized(members) {
  const count = members.length;
  const radius = count === 1 ? 0 : count === 2 ? 34 : Math.max(58, (count * 54) / (2 * Math.PI));
  const outer = count === 1 ? NODE : radius + NODE + (count > 2 && count <= MOST_LABELS ? 32 : 12);
  const angle = (index) => (count === 2 ? Math.PI * index : -Math.PI / 2 + (2 * Math.PI * index) / count);
  return {
    members,
    radius,
    outer,
    tall: count === 2 ? 2 * NODE + 16 : 2 * outer, // two stand side by side
    angle,
    at(index) {
      return count === 1
        ? [this.x, this.y]
        : [this.x + radius * Math.cos(angle(index)), this.y + radius * Math.sin(angle(index))];
    },
  };
}

function marker(name) {
  const id = freshId(name);
  const element = svg(
    "marker",
    { id, viewBox: "0 0 8 8", refX: 6, refY: 4, markerWidth: 10, markerHeight: 10, markerUnits: "userSpaceOnUse", orient: "auto", class: name },
    svg("path", { d: "M0 0.5 8 4 0 7.5Z" }),
  );
  return { element, reference: `url(#${id})` };
}

function node(index, [x, y], responses, group) {
  return svg(
    "g",
    { class: group.members.length > 2 ? "node ringed" : "node" },
    svg("title", {}, `${letter(index)}: ${shortened(responses[index], 200)}`),
    svg("circle", { cx: x, cy: y, r: NODE }),
    svg("text", { x, y }, letter(index)),
  );
}

function label(x, y, text, name = "label") {
  return svg("text", { x, y, class: name }, text);
}

// One arrow for all: every member of the one group beats every member of the other.
function between(before, after, matrix, head) {
  const pairs = before.members.flatMap((i) => after.members.map((j) => [matrix[i][j], i, j])).filter(([one]) => one !== null);
  const [least, first, second] = pairs.reduce((a, b) => (b[0] < a[0] ? b : a), [1, before.members[0], after.members[0]]);
  const text = pairs.length > 1 ? `≥${written(least)}` : written(least);
  const attributes = { class: "edge", "marker-end": head, "data-first": first, "data-second": second };
  const [start, end] = [before.x + before.outer + 4, after.x - after.outer - 4];
  if (end > start) {
    const path = svg("path", { ...attributes, d: `M${start} ${before.y}L${end} ${after.y}` });
    return svg("g", {}, path, label((start + end) / 2, (before.y + after.y) / 2 - 9, text));
  }
  // To the start of the next row: down, back, and down again.
  const [from, to] = [before.y + before.tall / 2 + 3, after.y - after.tall / 2 - 4];
  const middle = (from + to) / 2;
  const path = svg("path", { ...attributes, d: `M${before.x} ${from}V${middle}H${after.x}V${to}` });
  return svg("g", {}, path, label((before.x + after.x) / 2, middle - 5, text));
}

function ring(group, matrix, ringHead, chordHead) {
  const { members, x, y, radius, outer } = group;
  const count = members.length;
  if (count === 2) {
    const [[x1, y1], [x2, y2]] = [group.at(0), group.at(1)];
    return [svg("path", { class: "edge level", d: `M${x1} ${y1}L${x2} ${y2}` }), label(x, y - 9, "tied")];
  }
  const parts = [svg("circle", { class: "hull", cx: x, cy: y, r: outer - 1 })];
  const gap = (NODE + 4) / radius;
  const on = (angle, away = radius) => `${x + away * Math.cos(angle)} ${y + away * Math.sin(angle)}`;
  members.forEach((one, index) => {
    members.forEach((other, place) => {
      const neighbours = (index + 1) % count === place || (place + 1) % count === index;
      if (!neighbours && matrix[one][other] > 0.5) parts.push(chord(group, index, place, chordHead));
    });
  });
  members.forEach((one, index) => {
    const next = members[(index + 1) % count];
    const [from, to] = [group.angle(index) + gap, group.angle(index + 1) - gap];
    const level = matrix[one][next] === 0.5;
    parts.push(
      svg("path", {
        class: level ? "edge level" : "ring",
        d: `M${on(from)}A${radius} ${radius} 0 0 1 ${on(to)}`,
        "marker-end": level ? null : ringHead,
        "data-first": one,
        "data-second": next,
      }),
    );
    if (count <= MOST_LABELS) {
      const middle = (group.angle(index) + group.angle(index + 1)) / 2;
      const [tx, ty] = on(middle, radius + 25).split(" ").map(Number);
      parts.push(label(tx, ty, written(matrix[one][next]), "label ringed"));
    }
  });
  if (count === 3) parts.push(label(x, y, "circle", "label ringed"));
  return parts;
}

function chord(group, index, place, head) {
  const [[x1, y1], [x2, y2]] = [group.at(index), group.at(place)];
  const length = Math.hypot(x2 - x1, y2 - y1);
  const [dx, dy] = [((x2 - x1) / length) * (NODE + 3), ((y2 - y1) / length) * (NODE + 3)];
  return svg("path", {
    class: "edge chord",
    d: `M${x1 + dx} ${y1 + dy}L${x2 - dx} ${y2 - dy}`,
    "marker-end": head,
    "data-first": group.members[index],
    "data-second": group.members[place],
  });
}
