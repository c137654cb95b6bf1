// The row of thumbnails below the large image, when there are several.

import { $, h } from "./dom.js";

const WORDS = { waiting: "waiting", sending: "looking", failed: "failed" };

export class Strip {
  #store;
  #view;
  #entries = new Map(); // id -> {button, canvas, badge}
  #worker = null;
  #waiting = new Map(); // id -> image, of thumbnails being made

  constructor(store, view) {
    this.#store = store;
    this.#view = view;
  }

  /** Bring the row up to date with the images there are. */
  show() {
    const { images, current } = this.#store;
    $("strip").hidden = images.length < 2;
    if (images.length < 2 && !this.#entries.size) return; // a lone image's boxes are not to wait for this
    const known = new Set(images.map((image) => image.id));
    for (const [id, { item }] of this.#entries) {
      if (known.has(id)) continue;
      item.remove();
      this.#entries.delete(id);
    }
    for (const image of images) {
      if (!this.#entries.has(image.id)) this.#add(image);
      this.#update(image, image === current);
    }
  }

  /** Bring the counts up to date. */
  count() {
    for (const image of this.#store.images) this.#update(image, image === this.#store.current);
  }

  #add(image) {
    const canvas = h("canvas", { width: 1, height: 1, "aria-hidden": "true" });
    const badge = h("span", { class: "badge" });
    const button = h("button", { title: image.name, onclick: () => this.#store.select(image) }, canvas, badge);
    const item = h("li", {}, button);
    this.#entries.set(image.id, { item, button, canvas, badge });
    $("strip").append(item);
    this.#shrink(image, image.file);
  }

  #shrink(image, file) {
    if (!this.#worker) {
      this.#worker = new Worker("/static/thumbs-worker.js");
      this.#worker.addEventListener("message", ({ data }) => this.#made(data));
    }
    this.#waiting.set(image.id, image);
    this.#worker.postMessage({ id: image.id, file });
  }

  #update(image, current) {
    const entry = this.#entries.get(image.id);
    if (!entry) return;
    const { button, badge } = entry;
    const count = image.answer ? this.#view.shown(image.answer).length : null;
    badge.textContent = count ?? { failed: "!", sending: "…", waiting: "" }[image.state];
    button.dataset.state = image.state;
    button.setAttribute("aria-label", `${image.name}, ${count === null ? WORDS[image.state] : `${count} boxes`}`);
    if (current && button.getAttribute("aria-current") !== "true") button.scrollIntoView({ block: "nearest", inline: "nearest" });
    button.setAttribute("aria-current", String(current));
    if (image.answer && image.thumbless) this.#fromPreview(image);
  }

  #made({ id, bitmap }) {
    const image = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (!image) return;
    if (bitmap) {
      this.#draw(id, bitmap);
    } else {
      image.thumbless = true;
      this.#update(image, image === this.#store.current);
    }
  }

  async #fromPreview(image) {
    image.thumbless = false;
    try {
      this.#shrink(image, await image.usePreview());
    } catch {
      // The entry stays without a thumbnail; its name and count are there.
    }
  }

  #draw(id, bitmap) {
    const entry = this.#entries.get(id);
    if (!entry) return bitmap.close();
    [entry.canvas.width, entry.canvas.height] = [bitmap.width, bitmap.height];
    entry.canvas.getContext("bitmaprenderer").transferFromImageBitmap(bitmap);
  }
}
