// For operators.
import { html, useEffect, useState } from "./preact.js";
import { del, get, post } from "./api.js";
import { loadCatalog, refreshStats } from "./live.js";
import { Confirm, IconButton, copy, failed } from "./parts.js";
import { toast, use } from "./store.js";
import { t, useLang, when } from "./texts.js";

const ROLES = ["user", "viewer", "preset_only", "admin"];
const QUEUE = 200;

const Table = ({ heads, children }) => html`<div class="scroll" tabindex="0"><table><thead><tr>${heads.map((head) => html`<th key=${head}>${head}</th>`)}</tr></thead><tbody>${children}</tbody></table></div>`;

function Queue() {
  const [queue, setQueue] = useState(null);
  const load = () => get(`/v1/admin/queue?limit=${QUEUE}`).then(setQueue).catch(failed);
  useEffect(() => {
    load();
    const timer = setInterval(() => { if (!document.hidden) load(); }, 2000);
    return () => clearInterval(timer);
  }, []);
  const act = (path) => post(path).then((answer) => { load(); refreshStats(); return answer; }).catch(failed);
  return html`<section><h2>${t("whole_queue")}</h2>
    <div class="row wrap">
      <button type="button" class=${queue?.paused ? "primary" : ""} onClick=${() => act(queue?.paused ? "/v1/admin/resume" : "/v1/admin/pause")}>${t(queue?.paused ? "resume" : "pause")}</button>
      ${queue?.paused && html`<span role="status" class="warning">${t("is_paused")}</span>`}
    </div>
    ${queue?.data.length === 0 ? html`<p class="hint">${t("queue_empty")}</p>` : queue && html`<${Table} heads=${["user", "prompt", "size", "priority", "since", "status", "cancel"].map((name) => t(name))}>
      ${queue.data.map((job) => html`<tr key=${job.id}><td>${job.user}</td><td class="clip" title=${job.request.prompt}>${job.request.prompt}</td><td>${job.request.n} × ${job.request.size}</td>
        <td>${job.request.priority}</td><td>${when(job.created_at)}</td><td>${t(job.status)}${job.status === "queued" ? "" : ` ${job.progress.step}/${job.progress.steps}`}</td>
        <td><${IconButton} name="x" label=${t("cancel")} onClick=${() => act(`/v1/jobs/${job.id}/cancel`)} /></td></tr>`)}</${Table}>
      ${queue.has_more && html`<p class="hint">${t("only_first", QUEUE)}</p>`}`}
  </section>`;
}

function Files() {
  const [files, setFiles] = useState({});
  const load = () => get("/v1/admin/config").then((answer) => setFiles(answer.files)).catch(failed);
  useEffect(() => { load(); }, []);
  const reload = () => post("/v1/admin/reload-config").then(({ changed }) => {
    toast(changed.length ? t("reloaded", changed.join(", ")) : t("nothing_changed"));
    return loadCatalog();
  }).catch(failed).then(load);
  return html`<section><h2>${t("files")}</h2>
    <div class="row"><button type="button" onClick=${reload}>${t("reload")}</button></div>
    <${Table} heads=${["file", "version", "loaded_at"].map((name) => t(name))}>
      ${Object.entries(files).map(([name, one]) => html`<tr key=${name}><td>${one.source}${one.refused && html`<div class="error"><strong>${t("refused")}</strong><p lang="en">${one.refused.message}</p></div>`}</td>
        <td><code>${one.hash || "–"}</code></td><td>${when(one.loaded_at)}</td></tr>`)}</${Table}>
  </section>`;
}

const NEW = { name: "", role: "user", user: "", days: "" };

function lasts(key) {
  if (key.revoked_at) return t("revoked");
  if (!key.expires_at) return t("never");
  return Date.parse(key.expires_at) < Date.now() ? t("expired_key") : when(key.expires_at);
}

function Keys() {
  const [keys, setKeys] = useState([]), [made, setMade] = useState(null), [form, setForm] = useState(NEW), [sure, setSure] = useState(null);
  const load = () => get("/v1/admin/keys").then((answer) => setKeys(answer.data)).catch(failed);
  useEffect(() => { load(); }, []);
  const put = (field) => (event) => setForm({ ...form, [field]: event.target.value });
  const create = (event) => {
    event.preventDefault();
    const { name, role, user, days } = form;
    post("/v1/admin/keys", { name, role, ...(user && { user }), ...(days && { expires_in_days: Number(days) }) })
      .then((answer) => { setMade(answer.key); setForm(NEW); load(); }).catch(failed);
  };
  return html`<section><h2>${t("keys")}</h2>
    <form class="row wrap" onSubmit=${create}>
      <label class="field">${t("name")}<input value=${form.name} onInput=${put("name")} required /></label>
      <label class="field">${t("role")}<select value=${form.role} onChange=${put("role")}>${ROLES.map((one) => html`<option key=${one} value=${one}>${one}</option>`)}</select></label>
      <label class="field">${t("for_user")}<input value=${form.user} onInput=${put("user")} /></label>
      <label class="field">${t("days")}<input type="number" min="1" value=${form.days} onInput=${put("days")} /></label>
      <button class="primary">${t("new_key")}</button>
    </form>
    ${made && html`<p class="made"><code>${made}</code> <button type="button" onClick=${() => copy(made)}>${t("copy")}</button> <span class="hint">${t("once")}</span></p>`}
    ${keys.length > 0 && html`<${Table} heads=${["name", "role", "user", "key", "created", "expires", "revoke"].map((name) => t(name))}>
      ${keys.map((one) => html`<tr key=${one.id} class=${one.revoked_at ? "over" : ""}><td>${one.name}</td><td>${one.role}</td><td>${one.user}</td><td><code>…${one.last_four}</code></td><td>${when(one.created_at)}</td>
        <td>${lasts(one)}</td><td>${!one.revoked_at && html`<button type="button" class="quiet-danger" onClick=${() => setSure(one)}>${t("revoke")}</button>`}</td></tr>`)}</${Table}>`}
    ${sure && html`<${Confirm} action=${t("revoke")} text=${t("sure_revoke", sure.name)} onClose=${() => setSure(null)} onYes=${() => del(`/v1/admin/keys/${sure.id}`).then(load)} />`}
  </section>`;
}

export function Admin() {
  useLang();
  const open = use((s) => s.me?.via) === "open";
  return html`<div class="operator"><${Queue} /><${Files} />${!open && html`<${Keys} />`}</div>`;
}
