// The public API, relative to the page: behind a proxy with a prefix too.
import { state, update } from "./store.js";

export const BASE = new URL(".", document.baseURI).pathname;

export class ApiError extends Error {
  constructor(error, status) {
    super(error.message);
    Object.assign(this, { error, status });
  }
}

// Links are signed and absolute, maybe for another name of this host; the page may load from its own only.
export const local = (url) => (url ? BASE + url.slice(url.indexOf("/v1/") + 1) : null);

export async function call(method, path, body, headers = {}) {
  const csrf = state.me?.csrf_token;
  if (csrf && method !== "GET") headers = { ...headers, "X-CSRF-Token": csrf };
  if (body !== undefined) headers = { ...headers, "Content-Type": "application/json" };
  let response;
  try {
    response = await fetch(BASE + path.slice(1), { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new ApiError({ code: "offline", message: "offline", hint: null, request_id: null }, 0);
  }
  if (response.status === 204) return null;
  const answer = await response.json().catch(() => null);
  if (response.ok) return answer;
  const error = answer?.error ?? { code: "internal_error", message: `HTTP ${response.status}`, hint: null, request_id: response.headers.get("X-Request-ID") };
  error.retry_after = response.headers.get("Retry-After");
  if (response.status === 401) update({ login: true, me: null });
  throw new ApiError(error, response.status);
}

export const get = (path) => call("GET", path);
export const post = (path, body, headers) => call("POST", path, body, headers);
export const del = (path) => call("DELETE", path);
