// Painting over the picture to begin with: what is painted is drawn anew, the rest stays.
import { html, useEffect, useRef, useState } from "./preact.js";
import { Dialog, Icon } from "./parts.js";
import { state, toast, update, use } from "./store.js";
import { t, useLang } from "./texts.js";

const MOST = 2048; // the longest side of what is painted on; what is sent has the picture's own size
const COLOUR = "#c800ff"; // its alpha is what counts
const PEN_ERASER = 32;

export const loaded = (url) => new Promise((done, wrong) => {
  const image = new Image();
  image.onload = () => done(image);
  image.onerror = () => wrong(new Error("no picture"));
  image.src = url;
});

function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const pen = canvas.getContext("2d");
  return { canvas, pen };
}

// A mask as the API has it, white is drawn, in colour where it is white and without any where it is black.
function coloured(mask, width, height) {
  const { canvas, pen } = canvasOf(width, height);
  pen.drawImage(mask, 0, 0, width, height);
  const pixels = pen.getImageData(0, 0, width, height);
  for (let at = 0; at < pixels.data.length; at += 4) pixels.data[at + 3] = pixels.data[at];
  pen.putImageData(pixels, 0, 0);
  pen.globalCompositeOperation = "source-in";
  pen.fillStyle = COLOUR;
  pen.fillRect(0, 0, width, height);
  return canvas;
}

// As the API has it; null where nothing is painted.
function maskOf(painted, width, height) {
  const { data } = painted.getContext("2d").getImageData(0, 0, painted.width, painted.height);
  let any = false;
  for (let at = 3; at < data.length && !any; at += 4) any = data[at] > 127;
  if (!any) return null;
  const { canvas, pen } = canvasOf(width, height);
  pen.drawImage(painted, 0, 0, width, height);
  pen.globalCompositeOperation = "source-in";
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, width, height);
  pen.globalCompositeOperation = "destination-over";
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, width, height);
  return canvas.toDataURL("image/png");
}

// One act: a stroke through points, or all at once.
function act(pen, { kind, points, wide }) {
  const { width, height } = pen.canvas;
  pen.globalCompositeOperation = { brush: "source-over", erase: "destination-out", clear: "source-over", swap: "source-out" }[kind];
  Object.assign(pen, { fillStyle: COLOUR, strokeStyle: COLOUR, lineCap: "round", lineJoin: "round", lineWidth: wide ?? 1 });
  if (kind === "clear") return pen.clearRect(0, 0, width, height);
  if (kind === "swap") return pen.fillRect(0, 0, width, height);
  const [[x, y], ...others] = points;
  pen.beginPath();
  pen.moveTo(x, y);
  for (const [across, down] of others.length ? others : [[x + 0.01, y]]) pen.lineTo(across, down); // a dot is a line too
  return pen.stroke();
}

// The acts of one sitting: they can be taken back, down to the mask that was there before.
class Painting {
  constructor(picture, mask) {
    const shrunk = Math.min(1, MOST / Math.max(picture.naturalWidth, picture.naturalHeight));
    this.width = Math.max(1, Math.round(picture.naturalWidth * shrunk));
    this.height = Math.max(1, Math.round(picture.naturalHeight * shrunk));
    this.picture = picture;
    this.before = mask && coloured(mask, this.width, this.height);
    this.acts = [];
  }

  show(canvas) {
    this.pen = canvas.getContext("2d", { willReadFrequently: true });
    if (this.before) this.pen.drawImage(this.before, 0, 0);
  }

  add(one) {
    this.acts.push(one);
    act(this.pen, one);
  }

  // Goes on with the last stroke.
  extend(points) {
    const last = this.acts.at(-1);
    act(this.pen, { ...last, points: [last.points.at(-1), ...points] });
    last.points.push(...points);
  }

  undo() {
    this.acts.pop();
    act(this.pen, { kind: "clear" });
    this.pen.globalCompositeOperation = "source-over";
    if (this.before) this.pen.drawImage(this.before, 0, 0);
    for (const one of this.acts) act(this.pen, one);
  }

  mask() {
    return maskOf(this.pen.canvas, this.picture.naturalWidth, this.picture.naturalHeight);
  }
}

function Easel({ painting, tool, percent, onAct }) {
  const canvas = useRef(), ring = useRef(), pointer = useRef(null);
  useEffect(() => { painting.show(canvas.current); }, [painting]);
  const { width, height } = painting;
  const wide = (percent / 100) * Math.max(width, height);
  const at = (event) => {
    const box = canvas.current.getBoundingClientRect();
    return [((event.clientX - box.left) * width) / box.width, ((event.clientY - box.top) * height) / box.height];
  };
  const hover = (event) => {
    const [x, y] = at(event), across = 100 / width, down = 100 / height;
    Object.assign(ring.current.style, { display: "block", left: `${x * across}%`, top: `${y * down}%`, width: `${wide * across}%`, height: `${wide * down}%` });
  };
  const begin = (event) => {
    if (pointer.current !== null || ![0, 5].includes(event.button)) return;
    event.preventDefault();
    canvas.current.setPointerCapture(event.pointerId);
    pointer.current = event.pointerId;
    painting.add({ kind: event.buttons & PEN_ERASER ? "erase" : tool, wide, points: [at(event)] });
    onAct();
  };
  const move = (event) => {
    hover(event);
    if (pointer.current !== event.pointerId) return;
    const seen = event.getCoalescedEvents?.() ?? [];
    painting.extend((seen.length ? seen : [event]).map(at));
  };
  const end = (event) => { if (pointer.current === event.pointerId) pointer.current = null; };
  const leave = () => { ring.current.style.display = "none"; };
  const shape = { aspectRatio: `${width} / ${height}`, width: `min(100%, calc((100dvh - 270px) * ${width / height}))` };
  return html`<div class="easel" style=${shape}>
    <img src=${painting.picture.src} alt=${t("reference")} />
    <canvas ref=${canvas} width=${width} height=${height} onPointerDown=${begin} onPointerMove=${move} onPointerUp=${end} onPointerCancel=${end} onPointerLeave=${leave}></canvas>
    <span ref=${ring} class="ring" aria-hidden="true"></span>
  </div>`;
}

function Studio({ reference, onClose, onMask }) {
  const [painting, setPainting] = useState(null), [tool, setTool] = useState("brush"), [percent, setPercent] = useState(12), [, again] = useState(0);
  const acted = () => again((n) => n + 1);
  useEffect(() => {
    Promise.all([loaded(reference.full), reference.mask && loaded(reference.maskUrl)])
      .then(([picture, mask]) => setPainting(new Painting(picture, mask)))
      .catch(() => { onClose(); toast(t("reference_gone")); });
  }, []);
  const all = (kind) => { painting.add({ kind }); acted(); };
  const undo = () => { painting.undo(); acted(); };
  const keys = (event) => {
    if (event.key !== "z" || !(event.ctrlKey || event.metaKey) || !painting?.acts.length) return;
    event.preventDefault();
    undo();
  };
  const use_ = (name) => html`<button type="button" aria-pressed=${tool === name} onClick=${() => setTool(name)}><${Icon} name=${name} /> ${t(name)}</button>`;
  return html`<${Dialog} title=${t("paint")} onClose=${onClose} wide=${true} firm=${true}><div class="studio" onKeyDown=${keys}>
    <p class="hint">${t("paint_hint")}</p>
    <div class="board">${painting && html`<${Easel} painting=${painting} tool=${tool} percent=${percent} onAct=${acted} />`}</div>
    <div class="row wrap">
      <div class="row tool" role="group" aria-label=${t("brush")}>${use_("brush")}${use_("erase")}</div>
      <label class="row width">${t("brush_size")}<input type="range" min="1" max="40" value=${percent} onInput=${(event) => setPercent(Number(event.target.value))} /></label>
      <button type="button" disabled=${!painting?.acts.length} onClick=${undo}><${Icon} name="undo" /> ${t("undo")}</button>
      <button type="button" disabled=${!painting} onClick=${() => all("clear")}>${t("clear")}</button>
      <button type="button" disabled=${!painting} title=${t("swap_hint")} onClick=${() => all("swap")}>${t("swap")}</button>
      <button type="button" class="primary" disabled=${!painting} onClick=${() => onMask(painting.mask())}>${t("paint_done")}</button>
    </div>
  </div></${Dialog}>`;
}

// The share that may change is everything of a painted part, as long as nobody has said otherwise.
function strengthWith(mask, one) {
  const known = state.model.image_input.strength;
  const [usual, now] = mask ? [known.default, known.default_with_mask] : [known.default_with_mask, known.default];
  return !!mask !== !!one.mask && one.strength === usual ? now : one.strength;
}

export function Paint() {
  useLang();
  const painting = use((s) => s.painting), reference = use((s) => s.reference);
  if (!painting || !reference) return null;
  const close = () => update({ painting: false });
  const take = (mask) => update({ painting: false, reference: { ...reference, mask, maskUrl: mask, strength: strengthWith(mask, reference) } });
  return html`<${Studio} reference=${reference} onClose=${close} onMask=${take} />`;
}
