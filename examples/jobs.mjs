// A job watched from Node.js 18 or newer, without packages: node examples/jobs.mjs "a red fox" fox.png
import { writeFile } from "node:fs/promises";

const [prompt, path] = process.argv.slice(2);
const url = process.env.ZIMAGE_URL ?? "http://127.0.0.1:8000";
const headers = process.env.ZIMAGE_KEY ? { Authorization: `Bearer ${process.env.ZIMAGE_KEY}` } : {};

/** The data of every server-sent event of a response, as JSON. */
async function* events(response) {
  let buffered = "";
  for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
    const complete = (buffered + chunk).split("\n\n");
    buffered = complete.pop();
    for (const event of complete) {
      const data = event.split("\n").find((line) => line.startsWith("data: "));
      if (data) yield JSON.parse(data.slice("data: ".length));
    }
  }
}

const accepted = await fetch(`${url}/v1/jobs`, { method: "POST", headers, body: JSON.stringify({ prompt, seed: 1 }) });
if (!accepted.ok) throw new Error((await accepted.json()).error.message);
let job = await accepted.json();
for await (const { type, data } of events(await fetch(job.urls.events, { headers }))) {
  job = { ...job, ...data };
  console.log(type, job.progress.step, "of", job.progress.steps);
}
if (job.status !== "succeeded") throw new Error(`${job.status}: ${job.error?.message}`);
const picture = await fetch(job.result.images[0].url);
await writeFile(path, Buffer.from(await picture.arrayBuffer()));
