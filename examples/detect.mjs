// Ask a server for boxes, without packages: node detect.mjs IMAGE

import { readFileSync } from "node:fs";

const image = readFileSync(process.argv[2]);
const header = JSON.stringify({
  inputs: [{
    name: "image_bytes", shape: [1, image.length], datatype: "UINT8",
    parameters: { binary_data_size: image.length },
  }],
});
const answer = await fetch("http://127.0.0.1:8000/v2/models/detector/infer", {
  method: "POST",
  headers: { "Inference-Header-Content-Length": String(Buffer.byteLength(header)) },
  body: Buffer.concat([Buffer.from(header), image]),
});
const { outputs, error } = await answer.json();
if (error) throw new Error(error);
const found = Object.fromEntries(outputs.map(({ name, data }) => [name, data]));
for (let i = 0; i < found.num_detections[0]; i++) {
  if (found.scores[i] < 0.3) break;  // sorted by score
  console.log(found.classes[i], found.scores[i].toFixed(4), found.boxes.slice(4 * i, 4 * i + 4).join(" "));
}
