// What somebody judged by hand, kept in this browser until it is cleared. A key is never part of it.

const STORE = "paragone.labels";
const VERSION = 1;

/** Return what says that two pairs are the same. */
export function keyOf({ prompt, first, second }) {
  return JSON.stringify([prompt, first, second]);
}

/** Return `{queue, history, …}`: pairs to be judged, and what was done with them in order (a strength of null: passed
 * over). `changed` is called after each change. */
export function openLabels(changed) {
  const kept = read();
  let { queue, history } = kept;
  let whole = true; // whether storage holds the queue too

  function save() {
    whole = write({ version: VERSION, queue, history });
    if (!whole) write({ version: VERSION, queue: [], history });
    changed();
  }

  return {
    get whole() {
      return whole;
    },
    /** The pairs that were judged, each once, as rows of a file. */
    get judged() {
      const rows = new Map(history.map((one) => [keyOf(one), one]));
      return [...rows.values()].filter((one) => one.strength !== null);
    },
    /** Return the next pair to be judged, and how many come after it. */
    next() {
      const done = new Set(history.map(keyOf));
      const open = queue.filter((pair) => !done.has(keyOf(pair)));
      return { pair: open[0] ?? null, left: open.length };
    },
    /** Judge these pairs next; those that were judged before are not asked about again. */
    ask(pairs) {
      const known = new Set();
      queue = pairs.filter((pair) => !known.has(keyOf(pair)) && known.add(keyOf(pair)));
      save();
    },
    judge(pair, strength) {
      history.push({ prompt: pair.prompt, first: pair.first, second: pair.second, strength });
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
}

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
