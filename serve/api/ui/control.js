// ControlNets, where the model has any: which one, the picture that it follows, and how closely.
import { html, useRef } from "./preact.js";
import { Chips } from "./chips.js";
import { failed } from "./parts.js";
import { Begun, follow } from "./reference.js";
import { state, toast, update, use } from "./store.js";
import { t } from "./texts.js";

// The chosen one, as the service describes it: of another model's it may be there no more, a preset may insist on its own.
const insists = (preset) => preset?.locked.includes("controlnet");
const chosenOne = (preset) => state.model?.controlnets?.find((one) => one.id === (insists(preset) ? preset.controlnet : state.control?.name));

// These fields of what is sent. Without its picture the service says what is missing.
export function controlSent(preset) {
  const one = chosenOne(preset), { scale = null, source } = state.control ?? {};
  if (!one || (insists(preset) && !source)) return {};
  const chosen = scale !== null && !preset?.locked.includes("controlnet_conditioning_scale");
  return { controlnet: one.id, ...(source && { control_image: source }), ...(chosen && { controlnet_conditioning_scale: scale }) };
}

export function Control({ pictures, preset }) {
  const control = use((s) => s.control), known = use((s) => s.model?.controlnets) ?? [], file = useRef();
  const one = chosenOne(preset), scale = control?.scale ?? one?.scale;
  const set = (patch) => update({ control: { source: null, url: null, scale: null, ...control, ...patch } });
  const gone = () => { set({ source: null, url: null }); toast(t("control_gone")); };
  return html`${!insists(preset) && html`<${Chips} label=${t("controlnet")} kind="c:" pictures=${pictures} list=${known.map(({ id }) => ({ name: id }))} chosen=${one?.id ?? null}
      onChoose=${(name) => (name ? set({ name, scale: null }) : update({ control: null }))} />`}
    ${one && html`<div class="reference">
      ${control?.url ? html`<${Begun} url=${control.url} alt=${t("control")} onError=${gone} />` : html`<span class="begun"></span>`}
      ${!preset?.locked.includes("controlnet_conditioning_scale") && html`<label class="field wide"><span class="pair">${t("control_scale")} <span>${scale}</span></span>
        <input type="range" min="0" max=${one.max_scale} step="0.05" value=${scale} onInput=${(event) => set({ scale: Number(event.target.value) })} /></label>`}
      <button type="button" class="link" onClick=${() => file.current.click()}>${t(control?.url ? "control_other" : "control_choose")}</button>
      <input ref=${file} type="file" accept="image/png,image/jpeg,image/webp" hidden aria-label=${t("control")} onChange=${(event) => { const [picture] = event.target.files; if (picture) follow(picture).catch(failed); event.target.value = ""; }} />
    </div>`}`;
}
