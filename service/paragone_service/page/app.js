// The frame of the page: its views, its theme, its key, and the models that they share.
//
// A view is an object {id, title, open(root, context, question, own)}. `open` fills the root, once, and may return
// `{modelsChanged}`, which is called when other models are hosted; `context` is what all views share; `own` says that
// the question is the page's and not somebody's link. To add one, write a module and name it in VIEWS.

import { ApiError, get, hasKey, inWords, setKey } from "./api.js";
import { compare } from "./compare.js";
import { el } from "./dom.js";
import { label } from "./label.js";
import { runs } from "./runs.js";
import { readFragment } from "./state.js";

const VIEWS = [compare, label, runs];
const THEME = "paragone.theme";
const THEMES = ["auto", "light", "dark"];
const LOADING_SHOWN_AFTER_MS = 400;

const opened = new Map(); // by the view's id: its root, and what `open` returned
const byId = (id) => document.getElementById(id);

/** What views share. `models` is what the server hosts, `question` what somebody has written, and `needsKey` whether
 * the server wanted a key. */
const context = {
  models: [],
  question: null,
  needsKey: false,
  announce(text) {
    byId("announcer").textContent = text;
  },
  askForKey,
  /** Ask anew what is hosted, and tell the views: what is written in them stays. */
  async modelsChanged() {
    context.models = (await get("v1/models")).answer.models;
    for (const { view } of opened.values()) view?.modelsChanged?.();
  },
  /** Note that somebody follows a link that the page has made itself. */
  follows(fragment) {
    ownFragment = fragment;
  },
  /** Replace the address's fragment without opening anything. */
  keepAddress(fragment) {
    history.replaceState(null, "", fragment);
  },
};

let whenKeyed = null;
let ownFragment = null;

/** Open the dialog for the key; `then` is called once there is one. */
function askForKey(then = null, why = null) {
  whenKeyed = then;
  if (why) byId("key-why").textContent = why;
  byId("key-field").value = "";
  byId("key-dialog").showModal();
}

function closeKey() {
  byId("key-dialog").close();
  byId("key").textContent = hasKey() ? "Key ✓" : "Key";
}

function wireKey() {
  byId("key").textContent = hasKey() ? "Key ✓" : "Key";
  byId("key").addEventListener("click", () => askForKey(start));
  byId("key-close").addEventListener("click", closeKey);
  byId("key-forget").addEventListener("click", () => {
    setKey("");
    closeKey();
  });
  byId("key-dialog").querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault(); // the key must not become part of an address
    setKey(byId("key-field").value);
    closeKey();
    whenKeyed?.();
  });
}

function wireTheme() {
  const button = byId("theme");
  const apply = (theme) => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = `◐ ${theme}`;
    button.setAttribute("aria-label", `Theme: ${theme}`);
    button.dataset.theme = theme;
  };
  let theme = "auto";
  try {
    theme = THEMES.find((one) => one === localStorage.getItem(THEME)) ?? "auto";
  } catch {
    // storage may be forbidden
  }
  apply(theme);
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(button.dataset.theme) + 1) % THEMES.length];
    apply(next);
    try {
      localStorage.setItem(THEME, next);
    } catch {
      // as above
    }
  });
}

function show() {
  const { view: id, question, problem } = readFragment(location.hash);
  const view = VIEWS.find((one) => one.id === id) ?? VIEWS[0];
  for (const link of byId("views").children) {
    if (link.dataset.view === view.id) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  for (const [one, { root }] of opened) root.hidden = one !== view.id;
  if (!opened.has(view.id) || question || problem) {
    const root = el("div", { class: `view ${view.id}` });
    opened.get(view.id)?.root.remove();
    byId("main").append(root);
    opened.set(view.id, { root, view: view.open(root, context, question, ownFragment === location.hash) });
    if (problem) root.prepend(el("p", { class: "problem", role: "alert" }, problem));
  }
  ownFragment = null;
  document.title = VIEWS.length > 1 ? `${view.title} · Paragone` : "Paragone";
}

/** Ask what is hosted. Views that are open already, before another key was typed in, keep what is written in them. */
async function start() {
  byId("start-problem")?.remove();
  const loading = el("p", { class: "soft" }, "Loading the list of models …");
  const late = setTimeout(() => byId("main").prepend(loading), LOADING_SHOWN_AFTER_MS);
  try {
    await context.modelsChanged();
    if (!opened.size) show();
  } catch (error) {
    if (error instanceof ApiError && error.wantsKey) {
      context.needsKey = true;
      setKey(""); // the one there is, if any, was refused
      closeKey();
      askForKey(start, error.code === "wrong_key" ? inWords(error) : null);
    }
    const again = el("button", { type: "button", onclick: start }, "Try again");
    byId("main").prepend(el("p", { class: "problem", id: "start-problem", role: "alert" }, inWords(error), " ", again));
  } finally {
    clearTimeout(late);
    loading.remove();
  }
}

function wireViews() {
  if (VIEWS.length < 2) return;
  byId("views").append(
    ...VIEWS.map(({ id, title }) => el("a", { href: `#${id}`, "data-view": id }, title)),
  );
}

// As a plain link it would change the fragment, which carries what was asked.
function wireSkipping() {
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    byId("main").focus();
  });
}

wireTheme();
wireKey();
wireSkipping();
wireViews();
window.addEventListener("hashchange", show);
start();
