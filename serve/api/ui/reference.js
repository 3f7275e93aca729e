// Pictures that are brought along: their settings, or they themselves to begin with.
import { html } from "./preact.js";
import { BASE, local } from "./api.js";
import { settingsOf } from "./embedded.js";
import { loadCatalog } from "./live.js";
import { Dialog, IconButton, failed } from "./parts.js";
import { EMPTY, setForm, state, toast, update, use } from "./store.js";
import { size, t, useLang } from "./texts.js";

// What the service says of the pictures that it takes; undefined where it takes none.
const taken = () => state.model?.image_input;

function load(settings) {
  setForm({ ...EMPTY, output_format: state.form.output_format, ...settings });
  update({ tab: "make", brought: null });
  toast(t("loaded"));
}

// `source` is what the API is sent, `url` what is shown.
function begin(source, url, strength = taken().strength.default) {
  update({ reference: { source, url, strength }, brought: null, details: null, tab: "make" });
  setForm({ size: null });
  document.querySelector("#prompt")?.focus();
}

const dataUrl = (file) => new Promise((done, wrong) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result);
  reader.onerror = () => wrong(reader.error);
  reader.readAsDataURL(file);
});

async function beginWith(file) {
  const most = taken().max_bytes;
  if (file.size > most) return toast("", { code: "body_too_large", message: `${size(file.size)} > ${size(most)}` });
  const source = await dataUrl(file);
  return begin(source, source);
}

export async function bring(file) {
  const settings = await settingsOf(file).catch(() => null);
  if (!state.model) await loadCatalog(); // brought before the page knew whether pictures are taken
  if (settings && taken()) return update({ brought: { file, settings, url: URL.createObjectURL(file) } });
  if (settings) return load(settings);
  return taken() ? beginWith(file) : toast(t("no_settings"));
}

export const beginWithPicture = (one) => begin(`asset:${one.id}`, local(one.thumbnail_url ?? one.url));

// That of a job that began with one.
export function referenceOf(request) {
  const id = request.image?.split(":")[1];
  return id && taken() && !request.mask ? { source: request.image, url: `${BASE}v1/inputs/${id}`, strength: request.strength } : null;
}

export function Brought() {
  useLang();
  const one = use((s) => s.brought);
  if (!one) return null;
  const close = () => { URL.revokeObjectURL(one.url); update({ brought: null }); };
  return html`<${Dialog} title=${t("brought")} onClose=${close}><div class="brought">
    <img src=${one.url} alt="" />
    <button type="button" class="primary" onClick=${() => load(one.settings)}>${t("load_settings")}</button>
    <button type="button" onClick=${() => beginWith(one.file).catch(failed)}>${t("begin_with")}</button>
  </div></${Dialog}>`;
}

export function Reference() {
  useLang();
  const one = use((s) => s.reference), model = use((s) => s.model);
  if (!one || !model?.image_input) return null;
  const { minimum, maximum } = model.image_input.strength;
  const change = (event) => update({ reference: { ...one, strength: Number(event.target.value) } });
  return html`<div class="reference">
    <img src=${one.url} alt=${t("reference")} width="64" height="64" />
    <label class="field"><span class="pair">${t("strength")} <span>${Math.round(one.strength * 100)} %</span></span>
      <input type="range" min=${Math.max(minimum, 0.05)} max=${maximum} step="0.05" value=${one.strength} onInput=${change} /></label>
    <${IconButton} name="x" label=${t("no_reference")} onClick=${() => update({ reference: null })} />
  </div>`;
}
