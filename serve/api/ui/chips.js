// Choices by picture: presets, styles, adapters, ControlNets.
import { html } from "./preact.js";
import { BASE } from "./api.js";
import { t, titled } from "./texts.js";

// The latest picture that was drawn with each of them: for those that have none of their own.
export function samples(jobs) {
  const found = {};
  for (const job of [...jobs.values()].sort((a, b) => (a.id < b.id ? 1 : -1))) {
    const { preset, request } = job, names = { p: preset?.name, s: preset?.style_preset, a: request.adapter, c: request.controlnet };
    const image = Object.values(names).some(Boolean) && job.result?.images.find((one) => one.thumbnail_url);
    if (!image) continue;
    for (const [kind, name] of Object.entries(names)) {
      if (name) found[`${kind}:${name}`] ??= image.thumbnail_url.slice(image.thumbnail_url.indexOf("/v1/") + 1);
    }
  }
  return found;
}

export function Chips({ label, list, chosen, onChoose, pictures, kind, nobody = t("none") }) {
  if (!list.length) return null;
  const chip = (name, title, words, own) => {
    const picture = own ? BASE + own.slice(1) : pictures[kind + name];
    return html`<button type="button" class="choice" aria-pressed=${chosen === name} title=${words ?? ""} key=${name} onClick=${() => onChoose(name)}>
      ${picture ? html`<img src=${picture} alt="" width="64" height="64" />` : html`<span class=${`swatch ${name ? "" : "no"}`} aria-hidden="true">${name && [...title][0]}</span>`}
      <span>${title}</span></button>`;
  };
  return html`<fieldset><legend>${label}</legend><div class="choices">
    ${chip(null, nobody)}
    ${list.map((one) => chip(one.name, titled(one.title, one.name), titled(one.description, ""), one.picture_url))}
  </div></fieldset>`;
}
