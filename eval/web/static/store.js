// The pictures of this page and the queue that sends them. It draws nothing: `changed(picture)` is told to others.

import { detect, preview, Problem } from "./api.js";

const IN_FLIGHT = 2; // one at the server, the next already on its way
export const MOST = 100; // pictures a page holds

const AWAY = new Set(["down", "gone"]);

export class Picture {
  static #count = 0;

  constructor(file) {
    this.id = ++Picture.#count;
    this.file = file;
    this.name = file.name || "pasted picture";
    this.state = "waiting"; // sending, done, failed
    this.answer = null;
    this.problem = null;
    this.elapsed = null; // ms from being sent until the answer is here
    this.url = null;
    this.unknown = false; // the browser can't show the file
    this.previewed = null;
  }

  /** The size of the upright picture, once it is known. */
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
    this.previewed ??= preview(this.file).then((blob) => {
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
  pictures = [];
  current = null;
  limits = { bytes: null };
  #flying = 0;
  #paused = false;

  /** Take files in; returns how many there was no room for. */
  add(files) {
    const taken = [...files].slice(0, Math.max(0, MOST - this.pictures.length)).map((file) => new Picture(file));
    this.pictures.push(...taken);
    if (taken.length) this.select(taken[0]);
    this.#pump();
    return files.length - taken.length;
  }

  remove(picture) {
    const index = this.pictures.indexOf(picture);
    if (index < 0) return;
    this.pictures.splice(index, 1);
    picture.release();
    if (this.current === picture) this.select(this.pictures[Math.min(index, this.pictures.length - 1)] ?? null);
    this.#tell("changed", picture);
  }

  select(picture) {
    this.current = picture;
    this.#tell("selected", picture);
  }

  /** Select the neighbour `step` pictures on. */
  step(step) {
    const index = this.pictures.indexOf(this.current) + step;
    if (this.pictures[index]) this.select(this.pictures[index]);
  }

  retry(picture) {
    picture.state = "waiting";
    picture.problem = null;
    this.#tell("changed", picture);
    this.#pump();
  }

  /** Go on sending: the server is there (again). */
  resume() {
    if (!this.#paused) return;
    this.#paused = false;
    for (const picture of this.pictures) {
      if (picture.state !== "waiting") continue;
      picture.problem = null;
      this.#tell("changed", picture);
    }
    this.#pump();
  }

  #pump() {
    while (!this.#paused && this.#flying < IN_FLIGHT) {
      const next = this.pictures.find((picture) => picture.state === "waiting");
      if (!next) return;
      this.#send(next);
    }
  }

  async #send(picture) {
    picture.state = "sending";
    this.#flying++;
    const sent = performance.now();
    this.#tell("changed", picture);
    try {
      const most = this.limits.bytes;
      if (most && picture.file.size > most) {
        throw new Problem("bad_image", `the file has ${picture.file.size.toLocaleString("en")} bytes; the server takes ${most.toLocaleString("en")}`);
      }
      picture.answer = await detect(picture.file);
      picture.elapsed = performance.now() - sent;
      picture.state = "done";
    } catch (error) {
      picture.problem = error instanceof Problem ? error : new Problem("server", String(error));
      picture.state = "failed";
      if (AWAY.has(picture.problem.kind)) {
        picture.state = "waiting"; // sent again when the server is back
        this.#paused = true;
        this.#tell("away", picture.problem);
      }
    }
    this.#flying--;
    this.#tell("changed", picture);
    this.#pump();
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
