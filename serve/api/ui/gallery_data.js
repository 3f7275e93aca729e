// The history, page by page.
import { get } from "./api.js";
import { state, update } from "./store.js";

const PAGE = 40;
let last = Promise.resolve(), waiting = null, pending = 0, asked = null;

// One after another: else a refresh would discard the older page that is under way, or join pictures of two searches.
export function loadPictures(anew = false) {
  if (anew ? waiting : state.loading || !state.more || !state.cursor) return waiting ?? last;
  pending += 1;
  update({ loading: true });
  const mine = last.then(() => load(anew)).finally(() => { if (--pending === 0) update({ loading: false }); });
  if (anew) waiting = mine;
  last = mine.catch(() => {});
  return mine;
}

async function load(anew) {
  if (anew) waiting = null; // whoever wants another refresh from now on may not mean this one
  const query = anew ? state.query : asked, cursor = anew ? "" : `&cursor=${encodeURIComponent(state.cursor)}`;
  const page = await get(`/v1/assets?limit=${PAGE}&q=${encodeURIComponent(query)}${cursor}`);
  // A refresh keeps the older pictures that are there, where it joins them.
  const old = anew && query === asked ? olderThan(page.data) : null;
  asked = query;
  update(old
    ? { pictures: [...page.data, ...old] }
    : { pictures: anew ? page.data : [...state.pictures, ...page.data], cursor: page.next_cursor, more: page.has_more });
}

function olderThan(page) {
  const joint = page.length ? state.pictures.findIndex((one) => one.id === page[page.length - 1].id) : -1;
  return joint < 0 || state.pictures.length <= joint + 1 ? null : state.pictures.slice(joint + 1);
}

export function drop(ids) {
  const gone = new Set(ids);
  update({
    pictures: state.pictures.filter((one) => !gone.has(one.id)),
    selected: new Set([...state.selected].filter((id) => !gone.has(id))),
    details: state.details && gone.has(state.details.id) ? null : state.details,
  });
}
