// Pictures that are brought along: their settings, or they themselves to begin with, or for a ControlNet to follow.
import { html } from "./preact.js";
import { BASE, local } from "./api.js";
import { settingsOf } from "./embedded.js";
import { loadCatalog } from "./live.js";
import { Dialog, Icon, IconButton, failed } from "./parts.js";
import { EMPTY, setForm, state, toast, update, use } from "./store.js";
import { size, t, useLang } from "./texts.js";

// What the service says of the pictures that it takes; undefined where it takes none.
const taken = () => state.model?.image_input;

const follows = () => state.model?.controlnets?.length > 0;

function load({ control, ...settings }) {
  setForm({ ...EMPTY, output_format: state.form.output_format, ...settings });
  update({ tab: "make", brought: null, control: control && { ...control, source: null, url: null } });
  toast(t("loaded"));
}

// `source` is what the API is sent, `url` what is shown, and `full` the very picture where that is another.
function begin(source, url, full = url) {
  const strength = taken().strength.default;
  update({ reference: { source, url, full, strength, mask: null, maskUrl: null }, brought: null, details: null, tab: "make" });
  setForm({ size: null });
  document.querySelector("#prompt")?.focus();
}

const dataUrl = (file) => new Promise((done, wrong) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result);
  reader.onerror = () => wrong(reader.error);
  reader.readAsDataURL(file);
});

// As it can be sent; undefined where it is too large, which is said.
async function read(file) {
  const most = taken().max_bytes;
  if (file.size > most) return toast("", { code: "body_too_large", message: `${size(file.size)} > ${size(most)}` });
  return dataUrl(file);
}

async function beginWith(file) {
  const source = await read(file);
  if (source) begin(source, source);
}

// By the ControlNet that is chosen, else the first.
export async function follow(file) {
  const source = await read(file);
  if (!source) return;
  const { controlnets } = state.model, { id: name } = controlnets.find((one) => one.id === state.control?.name) ?? controlnets[0];
  update({ control: { scale: null, ...state.control, name, source, url: source }, brought: null, tab: "make" });
  if (!state.reference) setForm({ size: null });
  document.querySelector("#prompt")?.focus();
}

export async function bring(file) {
  const settings = await settingsOf(file).catch(() => null);
  if (!state.model) await loadCatalog(); // brought before the page knew whether pictures are taken
  if (taken() && (settings || follows())) return update({ brought: { file, settings, url: URL.createObjectURL(file) } });
  if (settings) return load(settings);
  return taken() ? beginWith(file) : toast(t("no_settings"));
}

export const beginWithPicture = (one) => begin(`asset:${one.id}`, local(one.thumbnail_url ?? one.url), `${BASE}v1/assets/${one.id}`);

const inputUrl = (named) => (named ? `${BASE}v1/inputs/${named.split(":")[1]}` : null);

// That of a job that began with one, with what was painted.
export function referenceOf(request) {
  const { image, mask, strength } = request, url = inputUrl(image);
  return image ? { source: image, url, full: url, strength: strength ?? 1, mask: mask ?? null, maskUrl: inputUrl(mask) } : null;
}

// And of one that followed one.
export function controlOf({ controlnet, control_image, controlnet_conditioning_scale }) {
  return controlnet ? { name: controlnet, scale: controlnet_conditioning_scale, source: control_image, url: inputUrl(control_image) } : null;
}

// With what may change of it in colour.
export function Begun({ url, mask, alt, onError }) {
  return html`<span class="begun"><img src=${url} alt=${alt} onError=${onError} />
    ${mask && html`<span class="painted" style=${{ maskImage: `url("${mask}")` }}></span>`}</span>`;
}

export const BegunOf = ({ one }) => html`<${Begun} url=${inputUrl(one.image)} mask=${inputUrl(one.mask)} alt="" />`;
export const FollowedBy = ({ one }) => html`<${Begun} url=${inputUrl(one.control_image)} alt="" />`;

export function Brought() {
  useLang();
  const one = use((s) => s.brought);
  if (!one) return null;
  const close = () => { URL.revokeObjectURL(one.url); update({ brought: null }); };
  return html`<${Dialog} title=${t("brought")} onClose=${close}><div class="brought">
    <img src=${one.url} alt="" />
    ${one.settings && html`<button type="button" class="primary" onClick=${() => load(one.settings)}>${t("load_settings")}</button>`}
    <button type="button" onClick=${() => beginWith(one.file).catch(failed)}>${t("begin_with")}</button>
    ${follows() && html`<button type="button" onClick=${() => follow(one.file).catch(failed)}>${t("follow_it")}</button>`}
  </div></${Dialog}>`;
}

export function Reference() {
  useLang();
  const one = use((s) => s.reference), model = use((s) => s.model);
  if (!one || !model?.image_input) return null;
  const { minimum, maximum } = model.image_input.strength;
  const change = (event) => update({ reference: { ...one, strength: Number(event.target.value) } });
  const gone = () => { if (one.source.startsWith("input:")) { update({ reference: null }); toast(t("reference_gone")); } };
  return html`<div class="reference">
    <${Begun} url=${one.url} mask=${one.maskUrl} alt=${t("reference")} onError=${gone} />
    <label class="field"><span class="pair">${t("strength")} <span>${Math.round(one.strength * 100)} %</span></span>
      <input type="range" min=${Math.max(minimum, 0.05)} max=${maximum} step="0.05" value=${one.strength} onInput=${change} /></label>
    <${IconButton} name="x" label=${t("no_reference")} onClick=${() => update({ reference: null })} />
    <button type="button" class="link" onClick=${() => update({ painting: true })}><${Icon} name="brush" /> ${t(one.mask ? "painted" : "paint")}</button>
  </div>`;
}
