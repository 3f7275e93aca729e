// One state for the whole page. A component is drawn again when what it selects has become another value.
import { useState, useEffect, useRef } from "./preact.js";

const listeners = new Set();

const remembered = (name, otherwise) => {
  try { return JSON.parse(localStorage.getItem(`zimage.${name}`)) ?? otherwise; } catch { return otherwise; }
};
export const remember = (name, value) => {
  try { localStorage.setItem(`zimage.${name}`, JSON.stringify(value)); } catch { /* a private window */ }
};

export const TABS = ["make", "keep", "admin"];

export const EMPTY = {
  model: null, prompt: "", negative_prompt: "", preset: null, style_preset: null, size: null, num_inference_steps: null,
  guidance_scale: null, seed: 0, locked: false, n: 1, output_format: "png", adapter: null, adapter_scale: null,
};

const said = new URLSearchParams(location.hash.slice(1)); // how a sign-in at the OpenID provider went wrong

export const state = {
  lang: remembered("lang", (navigator.language || "en").startsWith("zh") ? "zh" : "en"),
  theme: remembered("theme", "auto"),
  tab: TABS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "make",
  form: { ...EMPTY, ...remembered("form", {}) }, // a draft; everything that was sent lives on the server
  formError: null,
  me: null, login: false, connection: "connecting", stats: null, catalog: null, models: [], model: null,
  signInError: said.has("sign-in") ? { code: said.get("sign-in"), request_id: said.get("request") } : null,
  jobs: new Map(), jobsLoaded: false, previews: new Map(), // previews by `${job}:${image}`
  pictures: [], cursor: null, more: true, query: "", loading: false, selected: new Set(),
  details: null, toasts: [],
  control: null, // a ControlNet, how closely, and the picture that it follows
  reference: null, brought: null, painting: false, // a picture to begin with, one that was dropped and may become it, and whether it is painted on
};

export function update(patch) {
  Object.assign(state, typeof patch === "function" ? patch(state) : patch);
  for (const listener of [...listeners]) listener();
}

export function use(select) {
  const [, again] = useState(0);
  const value = select(state);
  const now = useRef();
  now.current = { select, value };
  useEffect(() => {
    const listener = () => {
      if (now.current.select(state) !== now.current.value) again((n) => n + 1);
    };
    listeners.add(listener);
    listener(); // what happened between the drawing and now
    return () => listeners.delete(listener);
  }, []);
  return value;
}

export function setForm(patch) {
  update({ form: { ...state.form, ...patch } });
  remember("form", state.form);
}

let toasts = 0;
export function toast(text, error = null) {
  const id = ++toasts;
  update({ toasts: [...state.toasts.slice(-3), { id, text, error }] });
  setTimeout(() => dismiss(id), error ? 15000 : 4000);
}
export const dismiss = (id) => update({ toasts: state.toasts.filter((one) => one.id !== id) });
