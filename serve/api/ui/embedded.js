// The settings inside a picture: PNG's text chunk `parameters`, EXIF's UserComment of JPEG and WebP.

const utf8 = new TextDecoder(), latin1 = new TextDecoder("latin1");

export async function settingsOf(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const text = bytes[0] === 0x89 && bytes[1] === 0x50 ? await png(bytes) : exif(bytes);
  return text ? parse(text) : null;
}

async function png(bytes) {
  const view = new DataView(bytes.buffer);
  for (let at = 8; at + 12 <= bytes.length;) {
    const size = view.getUint32(at), kind = latin1.decode(bytes.subarray(at + 4, at + 8));
    const data = bytes.subarray(at + 8, at + 8 + size);
    const zero = data.indexOf(0);
    if (["tEXt", "zTXt", "iTXt"].includes(kind) && latin1.decode(data.subarray(0, zero)) === "parameters") {
      if (kind === "tEXt") return latin1.decode(data.subarray(zero + 1));
      if (kind === "zTXt") return latin1.decode(await inflated(data.subarray(zero + 2)));
      const language = data.indexOf(0, zero + 3), text = data.indexOf(0, language + 1) + 1;
      return utf8.decode(data[zero + 1] ? await inflated(data.subarray(text)) : data.subarray(text));
    }
    at += 12 + size;
  }
  return null;
}

const inflated = async (data) =>
  new Uint8Array(await new Response(new Blob([data]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer());

function exif(bytes) {
  for (const [mark, label] of [["UNICODE\0", "utf-16"], ["ASCII\0\0\0", "utf-8"]]) {
    const start = find(bytes, mark);
    if (start < 0) continue;
    const size = commentSize(bytes, start) ?? bytes.length - start;
    const data = bytes.subarray(start + 8, start + size);
    if (label === "utf-8") return utf8.decode(data);
    const zeros = [0, 0]; // the settings are ASCII: their other halves say which comes first
    data.forEach((byte, i) => { zeros[i % 2] += byte === 0; });
    return new TextDecoder(zeros[1] > zeros[0] ? "utf-16le" : "utf-16be").decode(data);
  }
  return null;
}

function find(bytes, text) {
  const wanted = [...text].map((letter) => letter.charCodeAt(0));
  for (let at = bytes.indexOf(wanted[0]); at >= 0; at = bytes.indexOf(wanted[0], at + 1)) {
    if (wanted.every((byte, i) => bytes[at + i] === byte)) return at;
  }
  return -1;
}

// The length in the directory entry whose offset leads to the comment.
function commentSize(bytes, start) {
  const view = new DataView(bytes.buffer);
  for (const [order, little] of [["MM\0*", false], ["II*\0", true]]) {
    const tiff = find(bytes, order);
    if (tiff < 0) continue;
    for (let at = tiff; at + 12 <= start; at++) {
      if (view.getUint16(at, little) === 0x9286 && view.getUint32(at + 8, little) === start - tiff) return view.getUint32(at + 4, little);
    }
  }
  return null;
}

export function parse(text) {
  const lines = text.trim().split("\n");
  const last = lines[lines.length - 1] ?? "";
  if (!/(^|, )Steps: \d+/.test(last)) return null;
  const value = (name) => last.match(new RegExp(`(?:^|, )${name}: ([^,]+)`))?.[1];
  const rest = lines.slice(0, -1).join("\n");
  const negative = rest.indexOf("\nNegative prompt: ");
  const guidance = Number(value("CFG scale") ?? 0);
  const [adapter, scale] = value("Adapter")?.split(":") ?? [null, null], [controlnet, strength] = value("ControlNet")?.split(":") ?? [];
  return {
    prompt: negative < 0 ? rest : rest.slice(0, negative),
    negative_prompt: negative < 0 ? "" : rest.slice(negative + 18),
    num_inference_steps: Number(value("Steps")),
    guidance_scale: guidance, size: value("Size") ?? null,
    seed: Number(value("Seed") ?? 0), locked: value("Seed") !== undefined,
    preset: null, style_preset: null, n: 1, adapter, adapter_scale: scale === null ? null : Number(scale ?? 1),
    control: controlnet ? { name: controlnet, scale: Number(strength ?? 1) } : null,
  };
}
