// Elements and drawings, made one by one. Texts become text nodes: nothing on this page is ever parsed as markup.

const SVG = "http://www.w3.org/2000/svg";

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    // Through the object model: the content security policy forbids style attributes.
    else if (name === "style") for (const [key, one] of Object.entries(value)) node.style.setProperty(key, one);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Return an element: attributes by name, `onclick` and the like as functions, `style` as an object, then children. */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** Return an element of a drawing, likewise. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

let made = 0;

/** Return an id that no other element of the page has. */
export function freshId(name) {
  made += 1;
  return `${name}-${made}`;
}

/** Return the letter that names a response: A, B, …, Z, AA, AB, … */
export function letter(index) {
  const last = String.fromCharCode(65 + (index % 26));
  return index < 26 ? last : letter(Math.floor(index / 26) - 1) + last;
}

/** Return a text in one line, cut at a length, for places that only remind of it. */
export function shortened(text, length = 60) {
  const line = text.replace(/\s+/g, " ").trim();
  const characters = [...line];
  return characters.length > length ? `${characters.slice(0, length - 1).join("")}…` : line;
}

/** Return a probability as it is written everywhere; what is not certain never reads 0 or 1. */
export function written(probability) {
  if (probability === null || probability === undefined) return "–";
  if (probability > 0 && probability < 0.005) return "<0.01";
  if (probability < 1 && probability > 0.995) return ">0.99";
  return probability.toFixed(2);
}

/** Return "A, B and C". */
export function listed(words) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}

/** Return "1 pair" or "2 pairs". */
export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

/** Return a box that scrolls what may be wider than a phone, by keys too. */
export function scrolling(name, content) {
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": name }, content);
}
