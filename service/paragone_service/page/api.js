// The calls to the service that serves this page, the key they carry, and what their errors mean for a reader.

import { letter } from "./dom.js";

const KEY = "paragone.key";
let key = stored();

function stored() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // storage may be forbidden; then the key lives as long as the page
  }
}

/** Return whether a key was typed in. */
export function hasKey() {
  return key !== "";
}

/** Keep a key for this tab; an empty one forgets it. It is sent as a header, and never part of an address. */
export function setKey(value) {
  key = value.trim();
  try {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  } catch {
    // as above
  }
}

/** What a call ended with instead of an answer. `code` is the service's, or `unreachable` or `unreadable`. */
export class ApiError extends Error {
  constructor(code, message, { status = 0, retryAfterS = null, detail = {} } = {}) {
    super(message);
    this.name = "ApiError";
    this.code = code;
    this.status = status;
    this.retryAfterS = retryAfterS;
    this.detail = detail;
  }

  /** Whether the same call may succeed later. */
  get passes() {
    return this.status === 503 || this.status === 429 || this.status === 504 || this.code === "unreachable";
  }

  /** Whether it is the key that is missing or wrong. */
  get wantsKey() {
    return this.code === "missing_key" || this.code === "wrong_key";
  }
}

async function call(path, options) {
  const headers = { accept: "application/json", ...options.headers };
  if (key) headers.authorization = `Bearer ${key}`;
  let response;
  try {
    const address = new URL(path, document.baseURI);
    response = await fetch(address, { ...options, headers, credentials: "omit", referrerPolicy: "no-referrer" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("unreachable", "The server did not answer. Is it still running?");
  }
  let body = null;
  try {
    body = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (response.ok) throw new ApiError("unreadable", "The server's answer could not be read.", { status: response.status });
  }
  if (!response.ok) {
    const detail = body?.error ?? {};
    const retryAfterS = Number(response.headers.get("retry-after")) || null;
    const message = typeof detail.message === "string" ? detail.message : `The server answered with status ${response.status} and no explanation.`;
    throw new ApiError(String(detail.code ?? "unreadable"), message, { status: response.status, retryAfterS, detail });
  }
  return { answer: body, timings: timings(response.headers) };
}

function timings(headers) {
  const read = (name) => Number(headers.get(`x-${name}-ms`) ?? NaN);
  return { tokenize: read("tokenize"), queue: read("queue"), inference: read("inference"), total: read("total") };
}

/** Return `{answer, timings}` of a GET; times in milliseconds, as the server measured them. */
export function get(path, { signal } = {}) {
  return call(path, { method: "GET", signal });
}

/** Return `{answer, timings}` of a POST of JSON. Throws an ApiError. */
export function post(path, body, { signal } = {}) {
  return call(path, { method: "POST", signal, body: JSON.stringify(body), headers: { "content-type": "application/json" } });
}

/** Return `{answer, timings}` of a POST of a file as it is. Throws an ApiError. */
export function postFile(path, file, { signal } = {}) {
  return call(path, { method: "POST", signal, body: file, headers: { "content-type": "application/octet-stream" } });
}

/** Return what an error means, as a sentence for the reader of the page. */
export function inWords(error) {
  if (!(error instanceof ApiError)) return `Something went wrong in this page: ${error.message}`;
  const again = error.retryAfterS ? ` Try again in ${Math.ceil(error.retryAfterS)} s.` : " Try again in a moment.";
  switch (error.code) {
    case "missing_key":
      return "This server needs a key.";
    case "wrong_key":
      return "This server does not accept that key.";
    case "overloaded":
    case "too_many_connections":
      return `The server is busy.${again}`;
    case "quota_exceeded":
      return `The limit per minute is reached.${again}`;
    case "shutting_down":
      return `The server is shutting down.${again}`;
    default:
      return sentence(error.message);
  }
}

/** Return a message of the service for the one question of the page: with its letters, and as a sentence. */
export function sentence(message) {
  const plain = message
    .replace(/^groups\[0\]\.responses\[(\d+)\]/, (_, at) => `response ${letter(Number(at))}`)
    .replace(/^groups\[0\][.:]?\s*/, "");
  return plain.charAt(0).toUpperCase() + plain.slice(1);
}
