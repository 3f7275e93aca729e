// Small things that several places show.
import { html, useEffect, useRef, useState } from "./preact.js";
import { dismiss, toast, use } from "./store.js";
import { has, t, useLang } from "./texts.js";

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // not over plain http to another host
    const field = document.createElement("textarea");
    field.value = text;
    (document.querySelector("dialog[open]") ?? document.body).append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  toast(t("copied"));
}

const PATHS = {
  dice: "M4 4h16v16H4z M8.5 8.5h.01 M15.5 8.5h.01 M12 12h.01 M8.5 15.5h.01 M15.5 15.5h.01",
  lock: "M6 11h12v9H6z M9 11V7a3 3 0 0 1 6 0v4", unlock: "M6 11h12v9H6z M9 11V7a3 3 0 0 1 5.8-1",
  x: "M6 6l12 12 M18 6L6 18", down: "M12 4v11 M7 11l5 5 5-5 M5 20h14", bin: "M5 7h14 M10 7V4h4v3 M7 7l1 13h8l1-13",
  again: "M5 12a7 7 0 1 0 2-5 M7 3v4h4", vary: "M4 4h7v7H4z M13 4h7v7h-7z M4 13h7v7H4z M13 13h7v7h-7z", use: "M4 12h11 M11 7l5 5-5 5 M20 5v14",
  brush: "M20 4l-9 9 M11 13c-3-1-5 1-5 4 0 2-1 2-2 3 4 1 9 0 9-4z M14 7l3 3", erase: "M4 15l9-9 7 7-6 6H8z M9 10l7 7 M8 19h12", undo: "M8 6L4 10l4 4 M4 10h10a5 5 0 0 1 0 10h-3",
  image: "M4 5h16v14H4z M4 16l5-5 4 4 3-3 4 4 M15.5 9h.01",
  info: "M12 11v6 M12 7.5h.01 M12 3a9 9 0 1 0 .01 0", sun: "M12 8a4 4 0 1 0 .01 0 M12 2v3 M12 19v3 M2 12h3 M19 12h3 M5 5l2 2 M17 17l2 2 M19 5l-2 2 M7 17l-2 2",
};
export const Icon = ({ name }) => html`<svg viewBox="0 0 24 24" class="icon" aria-hidden="true"><path d=${PATHS[name]} /></svg>`;

export const IconButton = ({ name, label, ...rest }) =>
  html`<button type="button" class="icon-button" title=${label} aria-label=${label} ...${rest}><${Icon} name=${name} /></button>`;

export function Marked({ text, fragment }) {
  const points = [...text];
  const part = (from, to) => points.slice(from, to).join("");
  return html`<p class="marked">${part(0, fragment.start)}<mark>${part(fragment.start, fragment.end)}</mark>${part(fragment.end)}</p>`;
}

const FIELDS = { negative_prompt: "negative", n: "count", num_inference_steps: "steps", guidance_scale: "guidance", output_format: "format", style_preset: "style", image: "reference", mask: "masked", control_image: "control", controlnet_conditioning_scale: "control_scale" };

// What is wrong, where, what to do, and the id to ask the operator about. The server speaks English: its own words are the detail.
export function ErrorBox({ error, prompt, job }) {
  const lang = useLang(), id = error.request_id ?? job, field = FIELDS[error.param] ?? error.param;
  const title = has(`e_${error.code}`) && t(`e_${error.code}`) + (field && has(field) ? t("about", t(field)) : "");
  return html`<div class="error" role="alert">
    ${title && html`<strong>${title}</strong>`}
    ${error.message && error.code !== "offline" && html`<p lang="en" class=${lang === "en" ? "" : "hint"}>${error.message}</p>`}
    ${error.fragment && prompt && html`<${Marked} text=${prompt} fragment=${error.fragment} />`}
    ${error.hint && html`<p class="hint" lang="en">${error.hint}</p>`}
    ${error.retry_after && html`<p class="hint">${t("e_in", error.retry_after)}</p>`}
    ${id && html`<button type="button" class="link" onClick=${() => copy(id)} title=${t("copy")}>${t(error.request_id ? "request_id" : "job_id", id)}</button>`}
  </div>`;
}

// A `firm` one is not closed by a click beside it.
export function Dialog({ title, onClose, children, wide, firm }) {
  const ref = useRef();
  useEffect(() => { ref.current.showModal(); }, []);
  return html`<dialog ref=${ref} class=${wide ? "wide" : ""} aria-label=${title} onClose=${onClose}
      onClick=${(event) => { if (event.target === ref.current && onClose && !firm) ref.current.close(); }}>
    <div class="dialog">
      <header><h2>${title}</h2>${onClose && html`<${IconButton} name="x" label=${t("close")} onClick=${() => ref.current.close()} />`}</header>
      ${children}
    </div>
  </dialog>`;
}

// `typed` must be written before it goes on.
export function Confirm({ text, typed, action, onYes, onClose }) {
  const [value, setValue] = useState("");
  const [error, setError] = useState(null);
  const go = async (event) => {
    event.preventDefault();
    try { await onYes(); onClose(); } catch (failure) { setError(failure.error); }
  };
  return html`<${Dialog} title=${action} onClose=${onClose}>
    <form onSubmit=${go}>
      <p>${text}</p>
      ${typed !== undefined && html`<input aria-label=${text} inputmode="numeric" autocomplete="off" value=${value} onInput=${(event) => setValue(event.target.value)} />`}
      ${error && html`<${ErrorBox} error=${error} />`}
      <div class="row end">
        <button type="button" onClick=${onClose}>${t("cancel")}</button>
        <button class="danger" disabled=${typed !== undefined && value.trim() !== typed}>${action}</button>
      </div>
    </form>
  </${Dialog}>`;
}

export function Toasts() {
  const toasts = use((s) => s.toasts), ref = useRef();
  useEffect(() => { // over dialogs too, also those that opened later
    ref.current.hidePopover();
    if (toasts.length) ref.current.showPopover();
  }, [toasts]);
  return html`<div class="toasts" ref=${ref} popover="manual" role="status" aria-live="polite">
    ${toasts.map((one) => html`<div class="toast" key=${one.id}>
      ${one.error ? html`<${ErrorBox} error=${one.error} />` : one.text}
      <${IconButton} name="x" label=${t("close")} onClick=${() => dismiss(one.id)} />
    </div>`)}
  </div>`;
}

export const failed = (error) => { if (error.error) toast("", error.error); else throw error; };
