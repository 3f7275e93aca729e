// What the server knows, kept current: jobs by one WebSocket, figures every few seconds.
import { BASE, get, local } from "./api.js";
import { state, toast, update } from "./store.js";
import { loadPictures } from "./gallery_data.js";

const ENDED = ["succeeded", "failed", "canceled", "expired"];
export const ended = (job) => ENDED.includes(job.status);

let socket = null, wait = 500, timer = 0;

export async function start() {
  if (!(await refreshMe())) return;
  open();
  await Promise.all([loadJobs(), loadCatalog(), refreshStats(), loadPictures(true)].map((one) => one.catch(() => {})));
}

export async function refreshMe() {
  try {
    update({ me: await get("/v1/me"), login: false });
    return true;
  } catch (error) {
    if (error.status !== 401) {
      update({ connection: "offline" });
      clearTimeout(timer);
      timer = setTimeout(start, (wait = Math.min(wait * 2, 8000)));
    }
    return false;
  }
}

export async function loadCatalog() {
  const models = (await get("/v1/models")).data.filter((one) => one.id === one.root);
  const model = models.find((one) => one.id === state.form.model) ?? models[0];
  const catalog = await get(model === models[0] ? "/v1/presets" : `/v1/presets?model=${encodeURIComponent(model.id)}`);
  update({ catalog, models, model });
}

export async function loadJobs() {
  const [recent, queue] = await Promise.all([get("/v1/jobs?limit=24"), get("/v1/queue")]);
  const jobs = new Map();
  for (const job of [...recent.data, ...queue.my_jobs]) jobs.set(job.id, merged(state.jobs.get(job.id), job, job.status_seq));
  update({ jobs, jobsLoaded: true });
}

// `seen` are moments of this browser's clock: what counts down, counts from there.
export function merged(old, data, seq) {
  if (old && seq < old.seq) return old;
  const job = { ...old, ...data, seq };
  const now = Date.now();
  if (data.queue) job.etaAt = data.queue.eta_seconds === null ? null : now + data.queue.eta_seconds * 1000;
  if (data.status === "running" && !data.queue) job.queue = null;
  if (data.progress && data.progress.step > 0 && !job.first) job.first = { step: data.progress.step, at: now };
  if (data.progress && job.first && data.progress.step > job.first.step && !ended(job)) {
    const pace = (now - job.first.at) / (data.progress.step - job.first.step);
    job.etaAt = now + pace * (data.progress.steps - data.progress.step);
  }
  return job;
}

export function put(job) {
  const jobs = new Map(state.jobs);
  jobs.set(job.id, merged(jobs.get(job.id), job, job.status_seq));
  update({ jobs });
}

export function forget(id) {
  const jobs = new Map(state.jobs);
  jobs.delete(id);
  update({ jobs });
}

function hear(event) {
  if (event.type === "subscribed") return Promise.all([loadJobs(), loadPictures(true)]).catch(() => {}); // what ended since the first look
  if (event.type === "error") return event.job_id && event.error.code === "not_found" ? forget(event.job_id) : toast("", event.error);
  if (!event.job_id) return;
  if (event.type === "job.preview") {
    const previews = new Map(state.previews);
    previews.set(`${event.job_id}:${event.data.image}`, `data:image/${event.data.format};base64,${event.data.b64_json}`);
    return update({ previews });
  }
  const jobs = new Map(state.jobs);
  const job = merged(jobs.get(event.job_id), { id: event.job_id, ...event.data }, event.seq);
  if (!job.request) return get(`/v1/jobs/${event.job_id}`).then(put, () => {});
  jobs.set(job.id, job);
  update({ jobs });
  if (ended(job)) end(job);
}

function end(job) {
  const previews = new Map([...state.previews].filter(([key]) => !key.startsWith(job.id)));
  update({ previews });
  if (job.status === "succeeded") loadPictures(true).catch(() => {});
  refreshQuota();
}

function open() {
  if (socket) return;
  const url = new URL(BASE + "v1/ws", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  socket = new WebSocket(url);
  socket.onopen = () => {
    wait = 500;
    update({ connection: "online" });
    socket.send('{"type":"subscribe","jobs":"mine"}');
  };
  socket.onmessage = (message) => hear(JSON.parse(message.data));
  socket.onclose = () => {
    socket = null;
    update({ connection: "offline" });
    if (!state.me) return;
    clearTimeout(timer);
    timer = setTimeout(start, (wait = Math.min(wait * 2, 8000)));
  };
}

export function stop() {
  update({ me: null, jobs: new Map(), pictures: [], previews: new Map(), jobsLoaded: false });
  socket?.close();
}

export async function refreshStats() {
  try { update({ stats: await get("/v1/stats") }); } catch { /* the socket says that we are offline */ }
}

export async function refreshQuota() {
  refreshStats();
  try { update({ me: await get("/v1/me") }); } catch { /* as above */ }
}

export const picturesOf = (job) => (job.result?.images ?? []).filter((image) => !image.deleted && image.url)
  .map((image) => ({ ...image, url: local(image.url), thumbnail_url: local(image.thumbnail_url) }));

const watched = () => !document.hidden && state.me && state.connection === "online";
setInterval(() => {
  if (!watched()) return;
  refreshStats();
  if (!state.model) loadCatalog().catch(() => {}); // what was refused or lost when the page asked first
  if (!state.jobsLoaded) loadJobs().catch(() => {});
}, 3000);
setInterval(() => { if (watched()) refreshQuota(); }, 30000); // what other browsers used up
addEventListener("online", () => { clearTimeout(timer); if (!socket) start(); });
addEventListener("offline", () => { update({ connection: "offline" }); socket?.close(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden && state.me && !socket) start(); });
