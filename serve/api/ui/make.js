// The form.
import { html, useRef, useState } from "./preact.js";
import { ApiError, post } from "./api.js";
import { Chips, samples } from "./chips.js";
import { Control, controlSent } from "./control.js";
import { loadCatalog, put, refreshQuota } from "./live.js";
import { ErrorBox, IconButton, failed } from "./parts.js";
import { Reference, bring, controlOf, referenceOf } from "./reference.js";
import { EMPTY, setForm, state, update, use } from "./store.js";
import { t, useLang } from "./texts.js";

const ASPECTS = [["1:1", 1, 1], ["4:3", 4, 3], ["3:4", 3, 4], ["3:2", 3, 2], ["2:3", 2, 3], ["16:9", 16, 9], ["9:16", 9, 16]];
const MOST = 2 ** 53 - 1;
const UNKNOWN = { min_side_px: 64, max_side_px: 2048, side_multiple_px: 16, max_n: 10, max_steps: 50 };

const random = () => crypto.getRandomValues(new Uint32Array(1))[0];
export const key = () => [...crypto.getRandomValues(new Uint32Array(4))].map((word) => word.toString(36)).join("-");

export function limits() {
  return { ...UNKNOWN, ...state.model?.limits, ...presetOf(state.form)?.limits };
}

// As many pixels as the model draws by itself, in these proportions.
function sized(across, down) {
  const { min_side_px, max_side_px, side_multiple_px: unit } = limits();
  const usual = Math.min(Number(state.model?.defaults.size.split("x")[0] ?? 1024), max_side_px);
  const side = (share) => Math.min(max_side_px, Math.max(min_side_px, Math.round((usual * Math.sqrt(share)) / unit) * unit));
  return `${side(across / down)}x${side(down / across)}`;
}

function body() {
  const form = state.form, sent = { prompt: form.prompt, n: form.n, output_format: form.output_format, previews: 3 };
  for (const name of ["preset", "style_preset", "size", "num_inference_steps", "guidance_scale"]) {
    if (form[name] !== null && form[name] !== "") sent[name] = form[name];
  }
  if (form.negative_prompt.trim()) sent.negative_prompt = form.negative_prompt;
  if (form.locked) sent.seed = form.seed;
  if (adapterOf(form)) Object.assign(sent, { adapter: form.adapter }, form.adapter_scale === null ? {} : { adapter_scale: form.adapter_scale });
  if (state.reference) {
    const { source, strength, mask } = state.reference;
    Object.assign(sent, { image: source, strength }, mask ? { mask } : {});
  }
  Object.assign(sent, controlSent(presetOf(form)));
  if (state.models.length > 1) sent.model = state.model.id;
  if (state.me?.interactive) sent.priority = "interactive";
  return sent;
}

const presetOf = (form) => state.catalog?.data.find((one) => one.name === form.preset);

// The chosen one, as the service describes it: a draft may name one that is there no more, a preset may insist on its own.
const adapterOf = (form) => !presetOf(form)?.locked.includes("adapter") && state.model?.adapters?.find((one) => one.id === form.adapter);

// What may have been accepted before the connection broke is sent again under the same key.
let unsure = null;
const sending = new Set(); // a second click on the same is one; another prompt is another job

export async function draw() {
  const sent = body(), text = JSON.stringify(sent);
  if (sending.has(text)) return;
  sending.add(text);
  update({ formError: null });
  if (unsure?.text !== text) unsure = { text, key: key() };
  try {
    put(await post("/v1/jobs", sent, { "Idempotency-Key": unsure.key }));
    unsure = null;
    refreshQuota();
    if (matchMedia("(max-width: 820px)").matches) document.querySelector(".feed")?.scrollIntoView({ behavior: "smooth" });
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status && error.status < 500) unsure = null;
    update({ formError: { error: error.error, prompt: sent.prompt } });
    showFragment(error.error.fragment, sent.prompt);
  } finally {
    sending.delete(text);
  }
}

function showFragment(fragment, prompt) {
  const field = document.querySelector("#prompt");
  if (!fragment || !field) return;
  const units = (points) => [...prompt].slice(0, points).join("").length;
  field.focus();
  field.setSelectionRange(units(fragment.start), units(fragment.end));
}

// As the job was asked for, with the pictures that it began with and followed.
export function useSettings(request, preset) {
  update({ reference: referenceOf(request), control: controlOf(request), details: null, tab: "make" });
  setForm({
    ...EMPTY, model: request.model, prompt: preset?.prompt ?? request.prompt, negative_prompt: preset ? "" : request.negative_prompt ?? "",
    preset: preset?.name ?? null, style_preset: preset?.style_preset ?? null, size: request.size,
    num_inference_steps: request.num_inference_steps, guidance_scale: request.guidance_scale, seed: request.seed, locked: true,
    n: request.n ?? 1, output_format: request.output_format, adapter: request.adapter ?? null, adapter_scale: request.adapter_scale ?? null,
  });
  if (request.model !== state.model?.id) loadCatalog().catch(failed);
}

// Presets, sizes, adapters and ControlNets are the model's own.
function choose(id) {
  update({ model: state.models.find((one) => one.id === id), catalog: null, control: null });
  setForm({ model: id, preset: null, style_preset: null, size: null, adapter: null });
  loadCatalog().catch(failed);
}

function Model() {
  const models = use((s) => s.models), model = use((s) => s.model);
  if (models.length < 2) return null;
  return html`<label class="field">${t("model")}<select value=${model.id} onChange=${(event) => choose(event.target.value)}>
    ${models.map((one) => html`<option key=${one.id} value=${one.id}>${one.id}</option>`)}</select></label>`;
}

// LoRAs, where the model has any; a preset may bring its own, or insist on it.
function Adapter({ form, pictures }) {
  const known = state.model?.adapters ?? [], preset = presetOf(form);
  if (preset?.locked.includes("adapter")) return null;
  const chosen = adapterOf(form) || null, scale = form.adapter_scale ?? chosen?.scale;
  return html`<${Chips} label=${t("adapter")} kind="a:" pictures=${pictures} list=${known.map((one) => ({ name: one.id }))} chosen=${chosen?.id ?? null} nobody=${preset?.adapter ? t("auto") : t("none")}
      onChoose=${(adapter) => setForm({ adapter, adapter_scale: null })} />
    ${chosen && !preset?.locked.includes("adapter_scale") && html`<label class="field"><span class="pair">${t("adapter_scale")} <span>${scale}</span></span>
      <input type="range" min=${Math.min(0, scale)} max=${Math.max(2, scale)} step="0.05" value=${scale} onInput=${(event) => setForm({ adapter_scale: Number(event.target.value) })} /></label>`}`;
}

function Number_({ label, value, onValue, ...rest }) {
  return html`<label class="field">${label}<input type="number" value=${value ?? ""} placeholder=${t("auto")} ...${rest}
    onInput=${(event) => onValue(event.target.value === "" ? null : Number(event.target.value))} /></label>`;
}

function Size({ form }) {
  const { min_side_px, max_side_px, side_multiple_px } = limits();
  const [width, height] = form.size?.split("x").map(Number) ?? [null, null];
  const set = (w, h) => setForm({ size: w || h ? `${w || h}x${h || w}` : null });
  return html`<fieldset disabled=${!state.model}><legend>${t("size")}</legend>
    <div class="aspects">
      <button type="button" aria-pressed=${!form.size} onClick=${() => setForm({ size: null })}><svg class="aspect" viewBox="0 0 20 20" aria-hidden="true"><rect x="2" y="2" width="16" height="16" rx="4" stroke-dasharray="3 2.6" /></svg>${t("auto")}</button>
      ${ASPECTS.map(([name, across, down]) => html`<button type="button" key=${name} aria-pressed=${form.size === sized(across, down)} onClick=${() => setForm({ size: sized(across, down) })}>
        <svg class="aspect" viewBox="0 0 20 20" aria-hidden="true"><rect x=${10 - (8 * across) / Math.max(across, down)} y=${10 - (8 * down) / Math.max(across, down)} width=${(16 * across) / Math.max(across, down)} height=${(16 * down) / Math.max(across, down)} rx="1.5" /></svg>${name}</button>`)}
    </div>
    <div class="row sides">
      <${Number_} label=${t("width")} value=${width} min=${min_side_px} max=${max_side_px} step=${side_multiple_px} onValue=${(w) => set(w, height)} />
      <${Number_} label=${t("height")} value=${height} min=${min_side_px} max=${max_side_px} step=${side_multiple_px} onValue=${(h) => set(width, h)} />
    </div>
  </fieldset>`;
}

function Seed({ form }) {
  return html`<div class="field"><label for="seed">${t("seed")}</label><div class="joined">
    <input id="seed" type="number" min="0" max=${MOST} value=${form.locked ? form.seed : ""} placeholder=${t("random")}
      onInput=${(event) => setForm({ seed: Number(event.target.value), locked: event.target.value !== "" })} />
    <${IconButton} name="dice" label=${t("dice")} onClick=${() => setForm({ seed: random(), locked: true })} />
    <${IconButton} name=${form.locked ? "lock" : "unlock"} label=${t("lock")} aria-pressed=${form.locked}
      onClick=${() => setForm(form.locked ? { locked: false } : { locked: true, seed: form.seed || random() })} />
  </div></div>`;
}

export function Make() {
  useLang();
  use((s) => s.model); // whose limits are asked below
  const form = use((s) => s.form), catalog = use((s) => s.catalog), problem = use((s) => s.formError), jobs = use((s) => s.jobs), me = use((s) => s.me);
  const [busy, setBusy] = useState(0);
  const file = useRef();
  const submit = async (event) => {
    event?.preventDefault();
    if (!state.form.prompt.trim()) return;
    setBusy((n) => n + 1);
    try { await draw(); } finally { setBusy((n) => n - 1); }
  };
  const keys = (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event); };
  const pictures = samples(jobs), most = limits();
  const text = (id, label, hint, rows) => html`<label class="field" for=${id}>${label}
    <textarea id=${id} rows=${rows} value=${form[id === "prompt" ? "prompt" : "negative_prompt"]} placeholder=${hint} onKeyDown=${keys} dir="auto"
      aria-invalid=${id === "prompt" && !!problem?.error.fragment}
      onInput=${(event) => { setForm({ [id === "prompt" ? "prompt" : "negative_prompt"]: event.target.value }); if (state.formError) update({ formError: null }); }}></textarea></label>`;
  return html`<form class="make" onSubmit=${submit} noValidate>
    ${text("prompt", t("prompt"), t("prompt_hint"), 3)}
    <${Reference} />
    ${problem && html`<${ErrorBox} error=${problem.error} prompt=${problem.prompt} />`}
    <div class="row submit">
      <button class="primary" disabled=${!form.prompt.trim() || (me && !me.rights.includes("draw"))}>${busy ? t("drawing") : t("draw")} <kbd>Ctrl ⏎</kbd></button>
      <label class="field tight">${t("count")}<select value=${form.n} onChange=${(event) => setForm({ n: Number(event.target.value) })}>
        ${[...Array(most.max_n)].map((_, i) => html`<option value=${i + 1}>${i + 1}</option>`)}</select></label>
      <label class="field tight">${t("format")}<select value=${form.output_format} onChange=${(event) => setForm({ output_format: event.target.value })}>
        ${["png", "jpeg", "webp"].map((name) => html`<option value=${name}>${name}</option>`)}</select></label>
    </div>
    <${Model} />
    <${Chips} label=${t("preset")} kind="p:" pictures=${pictures} list=${catalog?.data ?? []} chosen=${form.preset} onChoose=${(preset) => setForm({ preset })} />
    <${Chips} label=${t("style")} kind="s:" pictures=${pictures} list=${catalog?.styles ?? []} chosen=${form.style_preset} onChoose=${(style_preset) => setForm({ style_preset })} />
    <${Adapter} form=${form} pictures=${pictures} />
    <${Control} pictures=${pictures} preset=${presetOf(form)} />
    <${Size} form=${form} />
    <${Seed} form=${form} />
    <details open=${form.num_inference_steps !== null || form.guidance_scale !== null || !!form.negative_prompt}><summary>${t("advanced")}</summary>
      <div class="row">
        <${Number_} label=${t("steps")} value=${form.num_inference_steps} min="1" max=${most.max_steps} step="1" onValue=${(num_inference_steps) => setForm({ num_inference_steps })} />
        <${Number_} label=${t("guidance")} value=${form.guidance_scale} min="0" max="20" step="0.5" onValue=${(guidance_scale) => setForm({ guidance_scale })} />
      </div>
      ${text("negative", t("negative"), t("negative_hint"), 2)}
    </details>
    <input ref=${file} type="file" accept="image/png,image/jpeg,image/webp" hidden onChange=${(event) => { const [one] = event.target.files; if (one) bring(one).catch(failed); event.target.value = ""; }} />
    <button type="button" class="link" onClick=${() => file.current.click()}>${t("open_picture")}</button>
  </form>`;
}
