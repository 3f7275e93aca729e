// For operators.
import { html, useEffect, useState } from "./preact.js";
import { del, get, post } from "./api.js";
import { refreshStats } from "./live.js";
import { IconButton, copy, failed } from "./parts.js";
import { toast, use } from "./store.js";
import { t, useLang, when } from "./texts.js";

const ROLES = ["user", "viewer", "preset_only", "admin"];

function Queue() {
  const [queue, setQueue] = useState(null);
  const load = () => get("/v1/admin/queue?limit=200").then(setQueue).catch(failed);
  useEffect(() => {
    load();
    const timer = setInterval(() => { if (!document.hidden) load(); }, 2000);
    return () => clearInterval(timer);
  }, []);
  const act = (path) => post(path).then((answer) => { load(); refreshStats(); return answer; }).catch(failed);
  return html`<section><h2>${t("whole_queue")}</h2>
    <div class="row wrap">
      <button type="button" class=${queue?.paused ? "primary" : ""} onClick=${() => act(queue?.paused ? "/v1/admin/resume" : "/v1/admin/pause")}>${t(queue?.paused ? "resume" : "pause")}</button>
      <button type="button" onClick=${() => act("/v1/admin/reload-config").then((answer) => answer && toast(t("reloaded", answer.changed.join(", ") || "–")))}>${t("reload")}</button>
      ${queue?.paused && html`<span role="status" class="warning">${t("is_paused")}</span>`}
    </div>
    ${queue?.data.length === 0 ? html`<p class="hint">${t("queue_empty")}</p>` : html`<div class="scroll" tabindex="0"><table>
      <thead><tr><th>${t("user")}</th><th>${t("prompt")}</th><th>${t("size")}</th><th>${t("status")}</th><th>${t("cancel")}</th></tr></thead>
      <tbody>${queue?.data.map((job) => html`<tr key=${job.id}><td>${job.user}</td><td class="clip">${job.request.prompt}</td><td>${job.request.n} × ${job.request.size}</td>
        <td>${t(job.status)} ${job.progress.step}/${job.progress.steps}</td><td><${IconButton} name="x" label=${t("cancel")} onClick=${() => act(`/v1/jobs/${job.id}/cancel`)} /></td></tr>`)}</tbody>
    </table></div>`}
  </section>`;
}

function Keys() {
  const [keys, setKeys] = useState([]), [made, setMade] = useState(null), [name, setName] = useState(""), [role, setRole] = useState("user");
  const load = () => get("/v1/admin/keys").then((answer) => setKeys(answer.data)).catch(failed);
  useEffect(() => { load(); }, []);
  const create = (event) => {
    event.preventDefault();
    post("/v1/admin/keys", { name, role }).then((answer) => { setMade(answer.key); setName(""); load(); }).catch(failed);
  };
  return html`<section><h2>${t("keys")}</h2>
    <form class="row wrap" onSubmit=${create}>
      <input value=${name} onInput=${(event) => setName(event.target.value)} placeholder=${t("name")} aria-label=${t("name")} required />
      <select value=${role} aria-label=${t("role")} onChange=${(event) => setRole(event.target.value)}>${ROLES.map((one) => html`<option>${one}</option>`)}</select>
      <button>${t("new_key")}</button>
    </form>
    ${made && html`<p class="made"><code>${made}</code> <button type="button" onClick=${() => copy(made)}>${t("copy")}</button> <span class="hint">${t("once")}</span></p>`}
    ${keys.length > 0 && html`<div class="scroll" tabindex="0"><table><thead><tr><th>${t("name")}</th><th>${t("role")}</th><th>${t("user")}</th><th>${t("key")}</th><th>${t("created")}</th><th>${t("revoke")}</th></tr></thead>
      <tbody>${keys.map((one) => html`<tr key=${one.id}><td>${one.name}</td><td>${one.role}</td><td>${one.user}</td><td><code>…${one.last_four}</code></td><td>${when(one.created_at)}</td>
        <td>${one.revoked_at ? t("revoked") : html`<button type="button" class="quiet-danger" onClick=${() => del(`/v1/admin/keys/${one.id}`).then(load).catch(failed)}>${t("revoke")}</button>`}</td></tr>`)}</tbody></table></div>`}
  </section>`;
}

export function Admin() {
  useLang();
  const open = use((s) => s.me?.via) === "open";
  return html`<div class="operator"><${Queue} />${!open && html`<${Keys} />`}</div>`;
}
