// The page: tabs, status bar, sign-in, and pictures that are brought along.
import { html, render, useEffect, useState } from "./preact.js";
import { Admin } from "./admin.js";
import { BASE, del, get } from "./api.js";
import { Cards } from "./cards.js";
import { Details } from "./details.js";
import { Gallery } from "./gallery.js";
import { start, stop } from "./live.js";
import { Make } from "./make.js";
import { Paint } from "./mask.js";
import { IconButton, Toasts, failed } from "./parts.js";
import { Brought, bring } from "./reference.js";
import { SignIn } from "./sign_in.js";
import { TABS, remember, state, toast, update, use } from "./store.js";
import { few, has, t, useLang } from "./texts.js";

const THEMES = ["auto", "light", "dark"];

// At the provider too, where one came in by it: else the next click would be in again without a question.
const signOut = async () => {
  const elsewhere = state.me.via === "oidc" && (await get("/auth/methods")).data.some((one) => one.type === "oidc");
  await del("/v1/session");
  stop();
  if (elsewhere) location.assign(`${BASE}auth/oidc/logout`);
  else update({ login: true });
};

function Header() {
  const lang = useLang(), tab = use((s) => s.tab), me = use((s) => s.me), theme = use((s) => s.theme);
  const tabs = ["make", "keep", ...(me?.rights.includes("admin") ? ["admin"] : [])];
  const label = t("theme", t(`theme_${theme}`));
  return html`<header class="top">
    <h1>Z-Image</h1>
    <nav>${tabs.map((name) => html`<button type="button" key=${name} aria-current=${tab === name ? "page" : null} onClick=${() => update({ tab: name })}>${t(name)}</button>`)}</nav>
    <div class="row">
      ${me && me.via !== "open" && html`<span class="me">${me.user}</span>${me.csrf_token && html`<button type="button" onClick=${() => signOut().catch(failed)}>${t("sign_out")}</button>`}`}
      <button type="button" class="quiet" lang=${lang === "zh" ? "en" : "zh"} onClick=${() => update({ lang: lang === "zh" ? "en" : "zh" })}>${t("language")}</button>
      <${IconButton} name="sun" label=${label} onClick=${() => update({ theme: THEMES[(THEMES.indexOf(theme) + 1) % 3] })} />
    </div>
  </header>`;
}

function Status() {
  useLang();
  const connection = use((s) => s.connection), stats = use((s) => s.stats), me = use((s) => s.me);
  const parts = [];
  if (stats && connection === "online") {
    parts.push(stats.ready ? t(stats.denoisers === 1 ? "replica" : "replicas", stats.denoisers) : t("not_ready"), t("in_queue", stats.queue_length, stats.active_requests));
    if (stats.paused) parts.push(t("is_paused"));
    if (stats.gpu_memory_total_gb) parts.push(t("vram", stats.gpu_memory_used_gb?.toFixed(1) ?? "–", stats.gpu_memory_total_gb.toFixed(1)));
  }
  for (const one of me?.quota ?? []) parts.push(t("quota", has(`q_${one.name}`) ? t(`q_${one.name}`) : one.name, few(one.remaining), few(one.limit)));
  return html`<footer class="status">
    <span class=${`dot ${connection}`} aria-hidden="true"></span><span role="status">${t(connection)}</span>
    ${parts.map((part) => html`<span key=${part}>${part}</span>`)}
    <a href=${`${BASE}docs`}>${t("api")}</a>
  </footer>`;
}

function useBrought() {
  const [over, setOver] = useState(false);
  useEffect(() => {
    const picture = (data) => [...(data?.files ?? [])].find((file) => file.type.startsWith("image/"));
    const events = {
      dragover: (event) => { if (event.dataTransfer?.types.includes("Files")) { event.preventDefault(); setOver(true); } },
      dragleave: (event) => { if (!event.relatedTarget) setOver(false); },
      drop: (event) => { setOver(false); const file = picture(event.dataTransfer); if (file) { event.preventDefault(); bring(file).catch(failed); } },
      paste: (event) => { const file = picture(event.clipboardData); if (file) { event.preventDefault(); bring(file).catch(failed); } },
    };
    for (const [name, heard] of Object.entries(events)) addEventListener(name, heard);
    return () => { for (const [name, heard] of Object.entries(events)) removeEventListener(name, heard); };
  }, []);
  return over;
}

function App() {
  const lang = useLang(), tab = use((s) => s.tab), theme = use((s) => s.theme), login = use((s) => s.login), me = use((s) => s.me), over = useBrought();
  useEffect(() => { document.documentElement.lang = lang === "zh" ? "zh-CN" : "en"; remember("lang", lang); }, [lang]);
  useEffect(() => { document.documentElement.dataset.theme = theme; remember("theme", theme); }, [theme]);
  useEffect(() => { history.replaceState(null, "", tab === "make" ? location.pathname : `#${tab}`); scrollTo(0, 0); }, [tab]);
  const here = tab === "admin" && !me?.rights.includes("admin") ? "make" : tab;
  return html`<${Header} />
    <main class=${here}>
      ${here === "make" && html`<${Make} /><${Cards} />`}
      ${here === "keep" && html`<${Gallery} />`}
      ${here === "admin" && html`<${Admin} />`}
    </main>
    <${Status} /><${Details} /><${Brought} /><${Paint} /><${Toasts} />
    ${login && html`<${SignIn} />`}
    ${over && html`<div class="drop">${t("drop")}</div>`}`;
}

document.documentElement.dataset.theme = state.theme;
addEventListener("hashchange", () => { const tab = location.hash.slice(1) || "make"; if (TABS.includes(tab)) update({ tab }); });
render(html`<${App} />`, document.querySelector("#app"));
start().then(() => { if (state.me && state.signInError) toast("", state.signInError); });
