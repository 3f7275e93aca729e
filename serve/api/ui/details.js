// One picture, large, with everything that is known of it.
import { html, useEffect, useState } from "./preact.js";
import { BASE, del, get, local } from "./api.js";
import { vary } from "./cards.js";
import { drop } from "./gallery_data.js";
import { loadJobs } from "./live.js";
import { useSettings } from "./make.js";
import { Confirm, Dialog, Icon, copy, failed } from "./parts.js";
import { BegunOf, FollowedBy, beginWithPicture } from "./reference.js";
import { state, toast, update, use } from "./store.js";
import { size, t, useLang, when } from "./texts.js";

function asked(one) {
  const body = { prompt: one.prompt, size: `${one.width}x${one.height}`, num_inference_steps: one.num_inference_steps, seed: one.seed, output_format: one.format };
  if (one.guidance_scale) Object.assign(body, { guidance_scale: one.guidance_scale }, one.negative_prompt ? { negative_prompt: one.negative_prompt } : {});
  for (const name of ["image", "mask", "strength", "adapter", "adapter_scale", "controlnet", "control_image", "controlnet_conditioning_scale", "cfg_normalization", "cfg_truncation"]) if (one[name] !== null && one[name] !== undefined) body[name] = one[name];
  return body;
}

const origin = () => location.origin + BASE.replace(/\/$/, "");
const secured = () => state.me?.via !== "open";

function asCurl(one) {
  const quoted = JSON.stringify(asked(one)).replaceAll("'", "'\\''");
  return `curl ${origin()}/v1/images/generations -H 'Accept: image/${one.format}' ${secured() ? '-H "Authorization: Bearer $KEY" ' : ""}\\\n  -d '${quoted}' -o picture.${one.format}\n`;
}

function asPython(one) {
  const { prompt, size: pixels, output_format, ...extra } = asked(one);
  return `import base64\nfrom openai import OpenAI\n\nclient = OpenAI(base_url="${origin()}/v1", api_key=${secured() ? '"YOUR KEY"' : '"none"'})\n`
    + `answer = client.images.generate(\n    prompt=${JSON.stringify(prompt)},\n    size="${pixels}",\n    output_format="${output_format}",\n    extra_body=${JSON.stringify(extra)},\n)\n`
    + `with open("picture.${one.format}", "wb") as file:\n    file.write(base64.b64decode(answer.data[0].b64_json))\n`;
}

function Facts({ one, known, job }) {
  const rows = [
    [t("negative"), one.negative_prompt], [t("size"), `${one.width} × ${one.height}`], [t("steps"), one.num_inference_steps], [t("guidance"), one.guidance_scale],
    [t("seed"), one.seed], [t("began_with"), one.image && html`<${BegunOf} one=${one} /> ${Math.round((one.strength ?? 1) * 100)} %`], [t("adapter"), one.adapter && `${one.adapter} × ${one.adapter_scale}`], [t("controlnet"), one.controlnet && html`<${FollowedBy} one=${one} /> ${one.controlnet} × ${one.controlnet_conditioning_scale}`], [t("preset"), job?.preset?.name], [t("style"), job?.preset?.style_preset], [t("model"), one.model], [t("bytes"), `${one.format}, ${size(one.bytes)}`], [t("created"), when(one.created_at)],
    [t("timings"), job?.timings && ["queue_ms", "encode_ms", "denoise_ms", "decode_ms", "total_ms"].map((name) => `${t(name)} ${job.timings[name]} ms`).join(" · ")],
    [t("weights"), known?.metadata.weights], [t("engine"), known?.metadata.engine], [t("hash"), known && html`<code>${known.sha256}</code>`],
  ];
  return html`<dl>${rows.filter(([, value]) => value !== null && value !== undefined && value !== "").map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

function Shown({ one }) {
  const [known, setKnown] = useState(null), [job, setJob] = useState(state.jobs.get(one.job_id) ?? null), [sure, setSure] = useState(false);
  const may = use((s) => s.me?.rights ?? []), model = use((s) => s.model);
  useEffect(() => {
    get(`/v1/assets/${one.id}/metadata`).then(setKnown).catch(() => {});
    if (!job) get(`/v1/jobs/${one.job_id}`).then(setJob).catch(() => {}); // it may have been forgotten
  }, []);
  const close = () => update({ details: null });
  const take = () => {
    useSettings({ ...asked(one), guidance_scale: one.guidance_scale, negative_prompt: one.negative_prompt }, job?.preset);
  };
  const step = (by) => {
    const at = state.pictures.findIndex((other) => other.id === one.id), next = state.pictures[at + by];
    if (at >= 0 && next) update({ details: next });
  };
  useEffect(() => {
    const keys = (event) => { if (event.key === "ArrowRight") step(1); else if (event.key === "ArrowLeft") step(-1); };
    addEventListener("keydown", keys);
    return () => removeEventListener("keydown", keys);
  }, []);
  return html`<${Dialog} title=${t("details")} onClose=${close} wide=${true}>
    <div class="shown">
      <img src=${local(one.url)} alt=${one.prompt} width=${one.width} height=${one.height} />
      <div>
        <p class="words" dir="auto" tabindex="0">${job?.preset?.prompt ?? one.prompt}</p>
        <div class="row wrap">
          <a class="button primary" href=${local(one.url)} download=${`${one.id}.${one.format}`}><${Icon} name="down" /> ${t("download")}</a>
          <button type="button" onClick=${take}><${Icon} name="use" /> ${t("use")}</button>
          ${may.includes("draw") && html`<button type="button" onClick=${() => { close(); vary(one.job_id); }}><${Icon} name="vary" /> ${t("variations")}</button>`}
          ${may.includes("draw") && model?.image_input && html`<button type="button" onClick=${() => beginWithPicture(one)}><${Icon} name="image" /> ${t("begin_with")}</button>`}
          <button type="button" onClick=${() => copy(asCurl(one))}>${t("copy_curl")}</button>
          <button type="button" onClick=${() => copy(asPython(one))}>${t("copy_python")}</button>
          ${may.includes("change") && html`<button type="button" class="quiet-danger" onClick=${() => setSure(true)}><${Icon} name="bin" /> ${t("remove")}</button>`}
        </div>
        <${Facts} one=${one} known=${known} job=${job} />
      </div>
    </div>
    ${sure && html`<${Confirm} action=${t("remove")} text=${t("sure_one")} onClose=${() => setSure(false)} onYes=${async () => {
      await del(`/v1/assets/${one.id}`);
      drop([one.id]);
      toast(t("gone", 1));
      loadJobs().catch(failed);
    }} />`}
  </${Dialog}>`;
}

export function Details() {
  useLang();
  const one = use((s) => s.details);
  return one && html`<${Shown} key=${one.id} one=${one} />`;
}
