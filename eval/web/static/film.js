// A video or a camera as one image of the page: the frame that is shown is the one whose boxes are drawn. While it
// plays, the newest frame is asked for as soon as the one before is answered. The browser decodes; nothing but
// single frames is sent.

import { $ } from "./dom.js";
import { PageImage } from "./store.js";

const QUALITY = 0.92;
const KEPT = 120; // answered frames of a camera, which the scrubber goes back to
const FIRST_STEP = 1 / 60; // seconds between frames, until it is seen
const JUST = 1e-3; // seconds
const LAG = 150; // milliseconds
const EMPTY = "this browser can't read the video";

export class Film {
  #video = document.createElement("video");
  #canvas = document.createElement("canvas");
  #stream = null;
  #kept = []; // of a camera: {file, answer}
  #step = FIRST_STEP;
  #asking = null; // what is awaited for the frame that is being asked for
  #wanted = null; // a place in the video that was asked for meanwhile
  playing = false;

  constructor(store) {
    this.store = store;
    Object.assign(this.#video, { muted: true, playsInline: true, preload: "auto" });
  }

  /** Open a video file and show its first frame. Rejects for what the browser can't read. */
  static async file(store, file) {
    const film = new Film(store);
    film.#video.src = URL.createObjectURL(file);
    await film.#opened(file.name);
    return film;
  }

  /** Open a camera, which plays until it is paused. Rejects where there is none, or it is not allowed. */
  static async camera(store) {
    const film = new Film(store);
    film.#stream = await navigator.mediaDevices.getUserMedia({ video: true });
    film.#video.srcObject = film.#stream;
    await film.#video.play();
    await film.#opened("camera");
    film.play();
    return film;
  }

  async #opened(name) {
    if (this.#video.readyState < 2) {
      await new Promise((resolve, reject) => {
        this.#video.onloadeddata = resolve;
        this.#video.onerror = () => reject(new Error(EMPTY));
      });
    }
    if (!this.#video.videoWidth) throw new Error(EMPTY);
    this.image = new PageImage(await this.#grab());
    this.image.name = name;
    this.image.film = this;
    this.store.add([this.image]);
  }

  get live() {
    return this.#stream !== null;
  }

  /** Where it is and how long it is: seconds of a video, frames of a camera. */
  get place() {
    if (!this.live) return [this.#shown(), this.#video.duration];
    const last = Math.max(0, this.#kept.length - 1);
    const shown = this.#kept.findIndex((kept) => kept.file === this.image.file);
    return [this.playing || shown < 0 ? last : shown, last];
  }

  async play() {
    if (this.playing || this.#asking) return;
    this.playing = true;
    await this.#video.play().catch(() => null); // paused before it began
    while (this.playing && this.store.images.includes(this.image)) {
      await this.#ask();
      if (this.#video.ended) this.playing = false;
    }
    this.pause();
  }

  pause() {
    this.playing = false;
    if (!this.live) this.#video.pause();
    show(this);
  }

  /** Show the frame at a place of the scrubber. */
  async seek(at) {
    this.playing = false;
    this.#video.pause();
    if (this.live) {
      await this.#asking; // its answer would take the place of the frame that is looked for
      const kept = this.#kept[at];
      if (kept) await this.store.show(this.image, kept.file, kept.answer);
      return show(this);
    }
    this.#wanted = Math.max(0, Math.min(at, this.#video.duration));
    if (this.#asking) return; // the loop below takes it up
    while (this.#wanted !== null) {
      await this.#moveTo(this.#wanted);
      this.#wanted = null;
      await this.#ask();
    }
  }

  /** Show the next frame, or that before. Of a video it is looked for, as frames may differ in length. */
  async step(direction) {
    if (this.live) return this.seek(this.place[0] + direction);
    if (this.#asking) return;
    this.#video.pause();
    const from = this.#shown();
    if (direction < 0) return this.seek(from - JUST);
    this.#asking = Promise.resolve();
    for (let reach = 0.6 * this.#step; this.#shown() <= from && from + reach < this.#video.duration; reach *= 1.5) {
      await this.#moveTo(from + reach);
    }
    this.#step = this.#shown() - from || this.#step;
    await this.#ask();
  }

  close() {
    this.playing = false;
    this.#stream?.getTracks().forEach((track) => track.stop());
    if (this.#video.src) URL.revokeObjectURL(this.#video.src);
    this.#video.removeAttribute("src");
    show(null);
  }

  /** When the frame is shown that the browser has now. */
  #shown() {
    if (typeof VideoFrame === "undefined" || this.live || this.#video.readyState < 2) return this.#video.currentTime;
    const frame = new VideoFrame(this.#video);
    frame.close();
    return frame.timestamp / 1e6;
  }

  /** Move; what is shown may follow a moment after the browser says that it has moved. */
  async #moveTo(time) {
    const video = this.#video;
    const shown = new Promise((resolve) => video.requestVideoFrameCallback?.(resolve));
    await new Promise((resolve) => {
      video.onseeked = resolve;
      video.currentTime = time;
    });
    await Promise.race([shown, new Promise((resolve) => setTimeout(resolve, LAG))]);
  }

  async #ask() {
    this.#asking = this.#answer();
    await this.#asking;
  }

  async #answer() {
    try {
      const file = await this.#grab();
      await this.store.replace(this.image, file);
      if (this.live) this.#kept = [...this.#kept, { file, answer: this.image.answer }].slice(-KEPT);
    } catch (problem) {
      this.playing = false;
      this.store.fail(this.image, problem);
    }
    this.#asking = null;
    show(this);
  }

  async #grab() {
    const { videoWidth: width, videoHeight: height } = this.#video;
    Object.assign(this.#canvas, { width, height });
    this.#canvas.getContext("2d").drawImage(this.#video, 0, 0);
    return new Promise((resolve) => this.#canvas.toBlob(resolve, "image/jpeg", QUALITY));
  }
}

/** Show the bar of the film that is on the stage, or none. */
export function show(film) {
  const current = film && film.store.current === film.image ? film : null;
  if (film && !current) return;
  $("film").hidden = !current;
  if (!current) return;
  const [at, end] = current.place;
  Object.assign($("film-at"), { max: end, step: current.live ? 1 : 0.001 });
  $("film-at").value = at;
  $("film-play").textContent = current.playing ? "❚❚" : "▶";
  $("film-play").ariaLabel = current.playing ? "Pause" : "Play";
  $("film-time").textContent = current.live ? `${at + 1} of ${end + 1}` : `${at.toFixed(2)} / ${end.toFixed(2)} s`;
}
