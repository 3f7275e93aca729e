// The history: everything that was drawn and is still there.
import { html, useEffect, useRef, useState } from "./preact.js";
import { del, get, local, post } from "./api.js";
import { drop, loadPictures } from "./gallery_data.js";
import { loadJobs } from "./live.js";
import { Confirm, failed } from "./parts.js";
import { state, toast, update, use } from "./store.js";
import { t, useLang } from "./texts.js";

let last = null; // what a shift-click reaches to

function pick(id, reach) {
  const selected = new Set(state.selected), ids = state.pictures.map((one) => one.id);
  const [a, b] = [ids.indexOf(last ?? id), ids.indexOf(id)].sort((x, y) => x - y);
  if (reach && a >= 0) ids.slice(a, b + 1).forEach((one) => selected.add(one));
  else if (!selected.delete(id)) selected.add(id);
  last = id;
  update({ selected });
}

function Tile({ one, selected }) {
  return html`<li class=${`tile ${selected ? "selected" : ""}`}>
    <button type="button" onClick=${(event) => (event.ctrlKey || event.metaKey || event.shiftKey ? pick(one.id, event.shiftKey) : update({ details: one }))} aria-label=${one.prompt}>
      <img src=${local(one.thumbnail_url)} alt="" loading="lazy" decoding="async" /></button>
    <input type="checkbox" checked=${selected} aria-label=${`${t("select")}: ${one.prompt}`} onClick=${(event) => pick(one.id, event.shiftKey)} />
  </li>`;
}

// Page by page: the API asks for the number, and tells it only to those who have it wrong.
async function count() {
  let number = 0;
  for (let cursor = ""; ;) {
    const page = await get(`/v1/assets?limit=200${cursor}`);
    number += page.data.length;
    if (!page.has_more) return number;
    cursor = `&cursor=${encodeURIComponent(page.next_cursor)}`;
  }
}

function DeleteAll({ onClose }) {
  const [number, setNumber] = useState(null);
  useEffect(() => { count().then(setNumber).catch((error) => { onClose(); failed(error); }); }, []);
  return html`<${Confirm} key=${number} action=${t("delete_all").replace("…", "")} onClose=${onClose} text=${number === null ? t("counting") : t("sure_all", number)} typed=${number === null ? "…" : `${number}`}
    onYes=${async () => {
      const { deleted_count } = await del(`/v1/assets?all=true&confirm=${number}`);
      toast(t("gone", deleted_count));
      update({ selected: new Set() });
      await Promise.all([loadPictures(true), loadJobs()]);
    }} />`;
}

function DeleteSelected({ ids, onClose }) {
  return html`<${Confirm} action=${t("delete_selected")} text=${ids.length === 1 ? t("sure_one") : t("sure", ids.length)} onClose=${onClose} onYes=${async () => {
    for (let i = 0; i < ids.length; i += 1000) await post("/v1/assets/delete", { ids: ids.slice(i, i + 1000) });
    drop(ids);
    toast(t("gone", ids.length));
    await loadJobs();
  }} />`;
}

export function Gallery() {
  useLang();
  const pictures = use((s) => s.pictures), selected = use((s) => s.selected), more = use((s) => s.more), loading = use((s) => s.loading), query = use((s) => s.query);
  const may = use((s) => s.me?.rights ?? []);
  const [asking, setAsking] = useState(null);
  const end = useRef(), timer = useRef();
  useEffect(() => {
    const watch = new IntersectionObserver(([seen]) => { if (seen.isIntersecting) loadPictures().catch(failed); }, { rootMargin: "600px" });
    watch.observe(end.current);
    return () => watch.disconnect();
  }, [pictures, loading]);
  const search = (event) => {
    update({ query: event.target.value });
    clearTimeout(timer.current);
    timer.current = setTimeout(() => loadPictures(true).catch(failed), 200);
  };
  return html`<section class="gallery" aria-label=${t("keep")}>
    <div class="bar">
      <input type="search" value=${query} onInput=${search} placeholder=${t("search")} aria-label=${t("search")} maxlength="200" />
      ${may.includes("change") && pictures.length > 0 && html`${selected.size > 0 ? html`
        <span>${t("selected", selected.size)}</span>
        <button type="button" onClick=${() => update({ selected: new Set() })}>${t("clear")}</button>
        <button type="button" class="danger" onClick=${() => setAsking("some")}>${t("delete_selected")}</button>` : null}
        <button type="button" onClick=${() => update({ selected: new Set(pictures.map((one) => one.id)) })}>${t("select_all")}</button>
        <button type="button" class="quiet-danger" onClick=${() => setAsking("all")}>${t("delete_all")}</button>`}
    </div>
    <ul class=${`tiles ${selected.size ? "picking" : ""}`}>${pictures.map((one) => html`<${Tile} key=${one.id} one=${one} selected=${selected.has(one.id)} />`)}</ul>
    ${!loading && pictures.length === 0 && html`<p class="nothing">${t(query ? "nothing_found" : "nothing")}</p>`}
    <div ref=${end} class="sentinel">${more && pictures.length > 0 && html`<button type="button" onClick=${() => loadPictures().catch(failed)}>${t("more")}</button>`}</div>
    ${asking === "some" && html`<${DeleteSelected} ids=${[...selected]} onClose=${() => setAsking(null)} />`}
    ${asking === "all" && html`<${DeleteAll} onClose=${() => setAsking(null)} />`}
  </section>`;
}
