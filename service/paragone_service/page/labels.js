// What somebody judged by hand, kept in this browser until it is cleared. A key is never part of it.

const STORE = "paragone.labels";
const VERSION = 1;

/** Return what says that two pairs are the same, whichever stands first: the later judgement is the one that counts. */
export function keyOf({ prompt, first, second }) {
  return JSON.stringify([prompt, ...[first, second].map((one) => JSON.stringify(one)).sort()]);
}

/** Return whether there is anything to choose between. */
export function distinct({ first, second }) {
  return JSON.stringify(first) !== JSON.stringify(second);
}

let { queue, history } = read();
let whole = true; // whether storage holds the queue too
const listeners = new Map();

// Two tabs share what is kept: what one of them writes, the other one takes over.
window.addEventListener("storage", (event) => {
  if (event.key !== STORE) return;
  ({ queue, history } = read());
  tell();
});

function tell() {
  for (const [root, changed] of listeners) {
    if (root.isConnected) changed();
    else listeners.delete(root);
  }
}

function save() {
  whole = write({ version: VERSION, queue, history });
  if (!whole) write({ version: VERSION, queue: [], history });
  tell();
}

/** Call a function after each change, for as long as an element is part of the page. */
export function whenJudged(root, changed) {
  listeners.set(root, changed);
}

/** What was judged, and what is to be judged. */
export const labels = {
  /** Whether the pairs that are left are kept too: a large file does not fit. */
  get whole() {
    return whole;
  },
  /** The pairs that were judged, each once, as rows of a file. */
  get judged() {
    const rows = new Map(history.map((one) => [keyOf(one), one]));
    return [...rows.values()].filter((one) => one.strength !== null);
  },
  /** Return the next pair to be judged, and how many are left with it. */
  next() {
    const done = new Set(history.map(keyOf));
    const open = queue.filter((pair) => !done.has(keyOf(pair)));
    return { pair: open[0] ?? null, left: open.length };
  },
  /** Judge these pairs next, but for those of one and the same text; what was judged before is not asked about again. */
  ask(pairs) {
    const known = new Set();
    queue = pairs.filter((pair) => distinct(pair) && !known.has(keyOf(pair)) && known.add(keyOf(pair)));
    save();
  },
  /** Note a judgement: 1 where the first is preferred, −1 where the second is, 0 for a tie, null for none. */
  judge({ prompt, first, second }, strength) {
    if (!distinct({ first, second })) throw new RangeError("the two responses are the same");
    history.push({ prompt, first, second, strength });
    save();
  },
  /** Take back what was done last, and return whether there was anything. */
  undo() {
    const last = history.pop();
    if (!last) return false;
    if (!queue.some((pair) => keyOf(pair) === keyOf(last))) queue.unshift(last);
    save();
    return true;
  },
  clear() {
    queue = [];
    history = [];
    save();
  },
};

/** Return judged pairs as a file that `paragone train model` and `train head` read. */
export function asLines(judged) {
  return judged.map(({ prompt, first, second, strength }) => `${JSON.stringify({ prompt, first, second, strength })}\n`).join("");
}

function read() {
  const nothing = { queue: [], history: [] };
  try {
    const kept = JSON.parse(localStorage.getItem(STORE) ?? "null");
    if (kept?.version !== VERSION) return nothing;
    const sound = (pair) => pair && [pair.prompt, pair.first, pair.second].every((part) => part !== undefined);
    const judged = (one) => sound(one) && (one.strength === null || [-1, 0, 1].includes(one.strength));
    return { queue: kept.queue.filter(sound), history: kept.history.filter(judged) };
  } catch {
    return nothing; // storage may be forbidden, or hold something else
  }
}

function write(value) {
  try {
    localStorage.setItem(STORE, JSON.stringify(value));
    return true;
  } catch {
    return false; // forbidden, or full
  }
}
