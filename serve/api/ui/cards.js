// A card for each job.
import { html, useEffect, useState } from "./preact.js";
import { del, local, post } from "./api.js";
import { drop } from "./gallery_data.js";
import { ended, forget, picturesOf, put } from "./live.js";
import { key, limits, useSettings } from "./make.js";
import { Confirm, ErrorBox, Icon, IconButton, failed } from "./parts.js";
import { setForm, update, use } from "./store.js";
import { EXAMPLES, ordinal, t, useLang } from "./texts.js";

const SHOWN = 24;
const ICON = new URL("icon.svg", import.meta.url).href;

function useNow(active) {
  const [, again] = useState(0);
  useEffect(() => {
    if (!active) return undefined;
    const timer = setInterval(() => again((n) => n + 1), 250);
    return () => clearInterval(timer);
  }, [active]);
  return Date.now();
}

const seconds = (job) => ((Date.parse(job.completed_at) - Date.parse(job.created_at)) / 1000).toFixed(3);

function Progress({ job }) {
  const now = useNow(!ended(job)), paused = use((s) => s.stats?.paused);
  if (ended(job)) return html`<p class=${`state ${job.status}`}>${t(job.status)} · <span class="elapsed">${t("took", seconds(job))}</span>${job.result?.cache === "hit" ? ` · ${t("from_cache")}` : ""}</p>`;
  const { step, steps } = job.progress, queue = job.status === "queued" ? job.queue : null;
  const left = job.etaAt ? Math.max(1, Math.ceil((job.etaAt - now) / 1000)) : null;
  const words = [t(job.status)];
  if (queue) words.push(t("place", ordinal(queue.position), queue.length));
  if (job.status === "queued" && paused) words.push(t("paused"));
  if (job.status === "running") words.push(t("step", step, steps));
  if (left !== null && !paused && job.status !== "canceling") words.push(t("eta", left));
  return html`<p class=${`state ${job.status}`}>${words.map((word, i) => html`${i ? " · " : ""}<span>${word}</span>`)}</p>
    <progress aria-label=${t(job.status)} max=${steps || 1} value=${step}></progress>`;
}

function Pictures({ job, onOpen }) {
  const previews = use((s) => s.previews);
  const [width, height] = job.request.size.split("x").map(Number);
  const ratio = { aspectRatio: `${width} / ${height}` };
  const cells = [];
  const byNumber = new Map((job.result?.images ?? []).map((image) => [Number(image.asset_id.split("-").pop()), image]));
  for (let i = 0; i < job.request.n; i++) {
    const image = byNumber.get(i), preview = previews.get(`${job.id}:${i}`);
    const alt = job.preset?.prompt ?? job.request.prompt;
    if (image?.url) cells.push(html`<button type="button" class="cell" style=${ratio} key=${i} onClick=${() => onOpen(image)} aria-label=${`${t("details")}: ${alt}`}><img src=${local(image.url)} alt=${alt} width=${width} height=${height} /></button>`);
    else if (ended(job)) cells.push(job.status === "succeeded" && html`<div class="cell empty" style=${ratio} key=${i}>${image ? t("deleted") : "–"}</div>`);
    else cells.push(html`<div class="cell waiting" style=${ratio} key=${i}>${preview && html`<img class="preview" src=${preview} alt=${t("running")} />`}</div>`);
  }
  return html`<div class=${`cells ${job.request.n > 1 ? "many" : ""}`}>${cells}</div>`;
}

const open = (job) => (image) => update({ details: { id: image.asset_id, job_id: job.id, url: image.url, ...job.request, format: image.format, bytes: image.bytes, width: image.width, height: image.height, seed: image.seed, created_at: job.completed_at } });

export const vary = (id) => post(`/v1/jobs/${id}/rerun`, { seed: null, n: Math.min(4, limits().max_n) }, { "Idempotency-Key": key() })
  .then((job) => { put(job); update({ tab: "make" }); }).catch(failed);

function Card({ job }) {
  const [sure, setSure] = useState(false);
  const prompt = job.preset?.prompt ?? job.request.prompt, may = use((s) => s.me?.rights ?? []);
  const cancel = () => post(`/v1/jobs/${job.id}/cancel`).then(put).catch(failed);
  const missing = job.result?.errors ?? [], pictures = picturesOf(job);
  return html`<li class=${`card ${job.status}`} data-job=${job.id}>
    <${Pictures} job=${job} onOpen=${open(job)} />
    <div class="about">
      <${Progress} job=${job} />
      <p class="words" dir="auto" title=${prompt}>${prompt}</p>
      ${job.error && html`<${ErrorBox} error=${job.error} job=${job.id} />`}
      ${missing.length > 0 && html`<p class="hint">${t("partial", missing.length, job.request.n)}: ${missing[0].error.message}</p>`}
      <div class="row tools">
        ${!ended(job) && may.includes("change") && html`<button type="button" disabled=${job.status === "canceling"} onClick=${cancel}>${t("cancel")}</button>`}
        ${["failed", "expired", "canceled"].includes(job.status) && html`<button type="button" onClick=${() => post(`/v1/jobs/${job.id}/rerun`, {}, { "Idempotency-Key": key() }).then(put).catch(failed)}><${Icon} name="again" /> ${t("retry")}</button>`}
        ${pictures.length === 1 && html`<a class="icon-button" href=${pictures[0].url} download=${`${pictures[0].asset_id}.${pictures[0].format}`} title=${t("download")} aria-label=${t("download")}><${Icon} name="down" /></a>`}
        ${job.status === "succeeded" && html`<${IconButton} name="vary" label=${t("variations")} onClick=${() => vary(job.id)} />`}
        <${IconButton} name="use" label=${t("use")} onClick=${() => { useSettings(job.request, job.preset); document.querySelector("#prompt")?.focus(); }} />
        ${ended(job) && may.includes("change") && html`<${IconButton} name="bin" label=${t("remove")} onClick=${() => setSure(true)} />`}
      </div>
    </div>
    ${sure && html`<${Confirm} action=${t("remove")} text=${t("sure_job")} onClose=${() => setSure(false)}
      onYes=${async () => { await del(`/v1/jobs/${job.id}`); forget(job.id); drop((job.result?.images ?? []).map((one) => one.asset_id)); }} />`}
  </li>`;
}

export function Cards() {
  const lang = useLang(), jobs = use((s) => s.jobs), loaded = use((s) => s.jobsLoaded);
  const newest = [...jobs.values()].sort((a, b) => (a.id < b.id ? 1 : -1));
  const shown = newest.filter((job, i) => i < SHOWN || !ended(job));
  return html`<section class="feed" aria-label=${t("jobs")}>
    <h2 class="hidden">${t("jobs")}</h2>
    ${loaded && shown.length === 0 && html`<div class="nothing"><img src=${ICON} alt="" width="56" height="56" />
      <h3>${t("nothing")}</h3><p>${t("try_one")}</p><div class="chips">
      ${EXAMPLES[lang].map((prompt) => html`<button type="button" class="chip" key=${prompt} onClick=${() => { setForm({ prompt }); document.querySelector("#prompt").focus(); }}>${prompt}</button>`)}</div></div>`}
    <ul class="cards">${shown.map((job) => html`<${Card} key=${job.id} job=${job} />`)}</ul>
  </section>`;
}
