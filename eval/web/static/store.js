// The images of this page and the queue that sends them. It draws nothing: `changed(image)` is told to others.

import { detect, preview, Problem } from "./api.js";

const IN_FLIGHT = 2; // one at the server, the next already on its way
export const MOST = 100; // images a page holds

const AWAY = new Set(["down", "gone"]);

export class PageImage {
  static #count = 0;

  constructor(file) {
    this.id = ++PageImage.#count;
    this.file = file;
    this.name = file.name || "pasted image";
    this.state = "waiting"; // sending, done, failed
    this.answer = null;
    this.problem = null;
    this.elapsed = null; // ms from being sent until the answer is here
    this.url = null;
    this.unknown = false; // the browser can't show the file
    this.previewed = null;
    this.film = null; // the video or camera whose frame it is
    this.tile = "";
  }

  /** The size of the upright image, once it is known. */
  get size() {
    return this.answer && this.answer.width ? [this.answer.width, this.answer.height] : null;
  }

  /** An address the <img> can show; the file itself until `usePreview`. */
  source() {
    this.url ??= URL.createObjectURL(this.file);
    return this.url;
  }

  /** Show what the page's program makes of the file from now on. Asks once; rejects with a Problem. */
  usePreview() {
    this.previewed ??= preview(this.file, this.tile).then((blob) => {
      this.release();
      this.url = URL.createObjectURL(blob);
      return blob;
    });
    return this.previewed;
  }

  release() {
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = null;
  }
}

export class Store extends EventTarget {
  images = [];
  current = null;
  limits = { bytes: null };
  tile = "";
  #flying = 0;
  #paused = false;

  /** Take files in, or images made of them; returns how many there was no room for. */
  add(files) {
    const taken = [...files]
      .slice(0, Math.max(0, MOST - this.images.length))
      .map((file) => (file instanceof PageImage ? file : new PageImage(file)));
    this.images.push(...taken);
    if (taken.length) this.select(taken[0]);
    this.#pump();
    return files.length - taken.length;
  }

  remove(image) {
    const index = this.images.indexOf(image);
    if (index < 0) return;
    this.images.splice(index, 1);
    image.release();
    image.film?.close();
    if (this.current === image) this.select(this.images[Math.min(index, this.images.length - 1)] ?? null);
    this.#tell("changed", image);
  }

  select(image) {
    this.current = image;
    this.#tell("selected", image);
  }

  /** Select the neighbour `step` images on. */
  step(step) {
    const index = this.images.indexOf(this.current) + step;
    if (this.images[index]) this.select(this.images[index]);
  }

  retry(image) {
    image.state = "waiting";
    image.problem = null;
    this.#tell("changed", image);
    this.#pump();
  }

  /** Ask for all images again, cut into tiles of another size. */
  cut(tile) {
    this.tile = tile;
    for (const image of this.images) if (image.state === "done" || image.state === "failed") this.retry(image);
  }

  /** Ask for a video's next frame and show it in the place of the one before. Rejects with a Problem. */
  async replace(image, file) {
    const sent = performance.now();
    const answer = await detect(file, this.tile);
    image.elapsed = performance.now() - sent;
    await this.show(image, file, answer);
  }

  /** Show a frame and its boxes at once, in the place of another. */
  async show(image, file, answer) {
    const ready = new Image();
    ready.src = URL.createObjectURL(file);
    await ready.decode();
    image.release();
    Object.assign(image, { file, answer, url: ready.src, state: "done", problem: null });
    this.#tell("changed", image);
  }

  /** Say why an image has no answer; where the server is away, it is sent again when that is back. */
  fail(image, error) {
    image.problem = error instanceof Problem ? error : new Problem("server", String(error));
    image.state = "failed";
    if (AWAY.has(image.problem.kind)) {
      image.state = "waiting";
      this.#paused = true;
      this.#tell("away", image.problem);
    }
    this.#tell("changed", image);
  }

  /** Go on sending: the server is there (again). */
  resume() {
    if (!this.#paused) return;
    this.#paused = false;
    for (const image of this.images) {
      if (image.state !== "waiting") continue;
      image.problem = null;
      this.#tell("changed", image);
    }
    this.#pump();
  }

  #pump() {
    while (!this.#paused && this.#flying < IN_FLIGHT) {
      const next = this.images.find((image) => image.state === "waiting");
      if (!next) return;
      this.#send(next);
    }
  }

  async #send(image) {
    image.state = "sending";
    this.#flying++;
    const sent = performance.now();
    this.#tell("changed", image);
    try {
      image.tile = this.tile;
      const most = image.tile ? null : this.limits.bytes;
      if (most && image.file.size > most) {
        throw new Problem("bad_image", `the file has ${image.file.size.toLocaleString("en")} bytes; the server takes ${most.toLocaleString("en")}`);
      }
      image.answer = await detect(image.file, image.tile);
      image.elapsed = performance.now() - sent;
      image.state = image.tile === this.tile ? "done" : "waiting"; // another size was chosen meanwhile
    } catch (error) {
      this.fail(image, error);
    }
    this.#flying--;
    this.#tell("changed", image);
    this.#pump();
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
