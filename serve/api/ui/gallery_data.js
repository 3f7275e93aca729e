// The history, page by page.
import { get } from "./api.js";
import { state, update } from "./store.js";

const PAGE = 40;
let turn = 0;

export async function loadPictures(anew = false) {
  if (!anew && (state.loading || !state.more || !state.cursor)) return;
  const mine = ++turn;
  update({ loading: true });
  try {
    const cursor = anew ? "" : `&cursor=${encodeURIComponent(state.cursor)}`;
    const page = await get(`/v1/assets?limit=${PAGE}&q=${encodeURIComponent(state.query)}${cursor}`);
    if (mine !== turn) return; // another question was asked meanwhile
    // A refresh keeps the older pages that are there, where it joins them.
    const old = anew ? olderThan(page.data, state.pictures) : null;
    update(old
      ? { pictures: [...page.data, ...old] }
      : { pictures: anew ? page.data : [...state.pictures, ...page.data], cursor: page.next_cursor, more: page.has_more });
  } finally {
    if (mine === turn) update({ loading: false });
  }
}

let asked = "";
function olderThan(page, pictures) {
  const same = asked === state.query;
  asked = state.query;
  const last = page.length && same ? pictures.findIndex((one) => one.id === page[page.length - 1].id) : -1;
  return last < 0 || pictures.length <= last + 1 ? null : pictures.slice(last + 1);
}

export function drop(ids) {
  const gone = new Set(ids);
  update({
    pictures: state.pictures.filter((one) => !gone.has(one.id)),
    selected: new Set([...state.selected].filter((id) => !gone.has(id))),
    details: state.details && gone.has(state.details.id) ? null : state.details,
  });
}
