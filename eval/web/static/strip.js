// The row of small pictures below the big one, when there are several.

import { $, h } from "./dom.js";

const WORDS = { waiting: "waiting", sending: "looking", failed: "failed" };

export class Strip {
  #store;
  #view;
  #entries = new Map(); // id -> {button, canvas, badge}
  #worker = null;
  #waiting = new Map(); // id -> picture, of thumbnails being made

  constructor(store, view) {
    this.#store = store;
    this.#view = view;
  }

  /** Bring the row up to date with the pictures there are. */
  show() {
    const { pictures, current } = this.#store;
    $("strip").hidden = pictures.length < 2;
    if (pictures.length < 2 && !this.#entries.size) return; // a lone picture's boxes are not to wait for this
    const known = new Set(pictures.map((picture) => picture.id));
    for (const [id, { item }] of this.#entries) {
      if (known.has(id)) continue;
      item.remove();
      this.#entries.delete(id);
    }
    for (const picture of pictures) {
      if (!this.#entries.has(picture.id)) this.#add(picture);
      this.#update(picture, picture === current);
    }
  }

  /** Bring the counts up to date. */
  count() {
    for (const picture of this.#store.pictures) this.#update(picture, picture === this.#store.current);
  }

  #add(picture) {
    const canvas = h("canvas", { width: 1, height: 1, "aria-hidden": "true" });
    const badge = h("span", { class: "badge" });
    const button = h("button", { title: picture.name, onclick: () => this.#store.select(picture) }, canvas, badge);
    const item = h("li", {}, button);
    this.#entries.set(picture.id, { item, button, canvas, badge });
    $("strip").append(item);
    this.#shrink(picture, picture.file);
  }

  #shrink(picture, file) {
    if (!this.#worker) {
      this.#worker = new Worker("/static/thumbs-worker.js");
      this.#worker.addEventListener("message", ({ data }) => this.#made(data));
    }
    this.#waiting.set(picture.id, picture);
    this.#worker.postMessage({ id: picture.id, file });
  }

  #update(picture, current) {
    const entry = this.#entries.get(picture.id);
    if (!entry) return;
    const { button, badge } = entry;
    const count = picture.answer ? this.#view.shown(picture.answer).length : null;
    badge.textContent = count ?? { failed: "!", sending: "…", waiting: "" }[picture.state];
    button.dataset.state = picture.state;
    button.setAttribute("aria-label", `${picture.name}, ${count === null ? WORDS[picture.state] : `${count} boxes`}`);
    if (current && button.getAttribute("aria-current") !== "true") button.scrollIntoView({ block: "nearest", inline: "nearest" });
    button.setAttribute("aria-current", String(current));
    if (picture.answer && picture.thumbless) this.#fromPreview(picture);
  }

  #made({ id, bitmap }) {
    const picture = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (!picture) return;
    if (bitmap) {
      this.#draw(id, bitmap);
    } else {
      picture.thumbless = true;
      this.#update(picture, picture === this.#store.current);
    }
  }

  async #fromPreview(picture) {
    picture.thumbless = false;
    try {
      this.#shrink(picture, await picture.usePreview());
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
