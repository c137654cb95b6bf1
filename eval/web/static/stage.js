// The large image and its boxes. Boxes are SVG in the image's own pixels, so they stay sharp at any zoom; labels are
// HTML, so they keep their size. The image is decoded by the browser beside the page's thread, and boxes don't wait
// for it.

import { $, h, svg } from "./dom.js";
import { place } from "./labels.js";

const STEP = 1.25;
const MOST_SCALE = 16; // CSS pixels a pixel
const MOST_SIDE = 24000; // CSS pixels; browsers stop short of 2^25
const MOST_ENLARGED = 4; // a tiny image isn't blown up further to fit
const MARGIN = 24;
const LEAST = 0.01; // pixels; SVG draws nothing of a rectangle without a width

export class Stage {
  #store;
  #view;
  #scale = null; // null: fitted
  #size = null;
  #groups = new Map();

  constructor(store, view) {
    this.#store = store;
    this.#view = view;
    this.element = $("stage");
    this.photo = $("image");
    this.photo.addEventListener("load", () => this.#loaded());
    this.photo.addEventListener("error", () => this.#unknown());
    new ResizeObserver(() => this.#layout()).observe(this.element);
    $("boxes").addEventListener("pointerover", (event) => view.light(indexOf(event.target)));
    $("boxes").addEventListener("pointerleave", () => view.light(null));
    $("boxes").addEventListener("click", (event) => {
      const index = indexOf(event.target);
      if (index !== null) this.element.dispatchEvent(new CustomEvent("picked", { detail: index }));
    });
    this.element.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    this.#pan();
  }

  /** Show the current image, as far as it is known. */
  show() {
    const image = this.#store.current;
    this.#scale = null;
    $("empty").hidden = Boolean(image);
    $("image").alt = image ? image.name : "";
    if (!image) {
      this.photo.removeAttribute("src");
      $("frame").hidden = $("working").hidden = $("problem").hidden = true;
      return;
    }
    this.#size = image.size;
    this.#groups = new Map(); // of the image before
    this.photo.src = image.source();
    this.answered();
  }

  /** Take in what is new of the current image: its answer, or why there is none. */
  answered() {
    const image = this.#store.current;
    if (!image) return;
    this.#size = image.size ?? this.#size;
    $("working").hidden = image.state !== "sending" || this.#naturally();
    $("frame").classList.toggle("busy", image.state === "sending");
    $("problem").hidden = !image.problem;
    if (image.problem) $("problem").replaceChildren(...this.#said(image));
    if (image.film && this.photo.src !== image.source()) { // its next frame
      this.#groups = new Map();
      this.photo.src = image.source();
    }
    this.#checkSize();
    this.#layout();
    this.drawBoxes();
  }

  /** Draw the boxes that are to be seen; small ones lie on top, so that each can be reached. */
  drawBoxes() {
    const answer = this.#store.current?.answer ?? null;
    const shown = answer && this.#size ? this.#view.shown(answer) : [];
    const area = ([x1, y1, x2, y2]) => (x2 - x1) * (y2 - y1);
    const byArea = [...shown].sort((a, b) => area(answer.detections[b].box) - area(answer.detections[a].box));
    this.#groups = new Map(byArea.map((index) => [index, boxGroup(answer, index)]));
    $("boxes").replaceChildren(...this.#groups.values());
    this.#drawLabels();
    this.light();
  }

  /** Light one box and dim the others. */
  light() {
    const lit = this.#groups.has(this.#view.lit) ? this.#view.lit : null;
    $("frame").classList.toggle("one-lit", lit !== null);
    for (const [index, group] of this.#groups) group.classList.toggle("lit", index === lit);
    for (const label of $("labels").children) label.classList.toggle("lit", Number(label.dataset.index) === lit);
  }

  /** Scroll a box into view. */
  reveal(index) {
    const box = this.#store.current?.answer?.detections[index]?.box;
    if (!box || this.#scale === null) return;
    const frame = $("frame");
    this.element.scrollTo({
      left: frame.offsetLeft + ((box[0] + box[2]) / 2) * this.scale - this.element.clientWidth / 2,
      top: frame.offsetTop + ((box[1] + box[3]) / 2) * this.scale - this.element.clientHeight / 2,
    });
  }

  /** CSS pixels a pixel of the image. */
  get scale() {
    return this.#scale ?? this.#fitted();
  }

  fit() {
    this.#scale = null;
    this.#layout();
  }

  /** Zoom by steps about a point of the stage, its middle by default. */
  zoom(steps, x = this.element.clientWidth / 2, y = this.element.clientHeight / 2) {
    if (!this.#size) return;
    const before = this.scale;
    const most = Math.max(this.#fitted(), Math.min(MOST_SCALE, MOST_SIDE / Math.max(...this.#size)));
    const after = Math.max(this.#fitted(), Math.min(most, before * STEP ** steps));
    this.#scale = after <= this.#fitted() * 1.001 ? null : after;
    const frame = $("frame");
    const at = [(this.element.scrollLeft + x - frame.offsetLeft) / before, (this.element.scrollTop + y - frame.offsetTop) / before];
    this.#layout();
    this.element.scrollLeft = at[0] * this.scale + frame.offsetLeft - x;
    this.element.scrollTop = at[1] * this.scale + frame.offsetTop - y;
  }

  #fitted() {
    const room = [this.element.clientWidth - MARGIN, this.element.clientHeight - MARGIN];
    return Math.min(MOST_ENLARGED, room[0] / this.#size[0], room[1] / this.#size[1]);
  }

  #layout() {
    const known = Boolean(this.#size);
    $("frame").hidden = !known || !this.#store.current;
    if ($("frame").hidden) return;
    const [width, height] = this.#size;
    const style = $("frame").style;
    style.width = `${width * this.scale}px`;
    style.height = `${height * this.scale}px`;
    $("boxes").setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.element.classList.toggle("zoomed", this.#scale !== null);
    this.photo.classList.toggle("pixels", this.scale >= 3);
    $("zoom-fit").textContent = this.#scale === null ? "fit" : `${Math.round(this.scale * 100)} %`;
    this.#drawLabels();
  }

  #drawLabels() {
    const answer = this.#store.current?.answer;
    if (!answer || !this.#size) return $("labels").replaceChildren();
    const items = [...this.#groups.keys()]
      .sort((a, b) => a - b)
      .map((index) => ({ index, box: answer.detections[index].box, text: labelOf(answer, index) }));
    const font = getComputedStyle($("labels")).font;
    const [width, height] = this.#size.map((side) => side * this.scale);
    const spots = place(items, this.scale, width, height, font);
    $("labels").replaceChildren(
      ...items.map(({ index, text }, n) => {
        const [ground, letters] = answer.model.colours[answer.detections[index].index];
        const label = h("span", { "data-index": index, class: spots[n].free ? "" : "covered" }, text);
        Object.assign(label.style, { left: `${spots[n].x}px`, top: `${spots[n].y}px`, background: ground, color: letters });
        return label;
      }),
    );
  }

  #naturally() {
    return this.photo.complete && this.photo.naturalWidth > 0;
  }

  #loaded() {
    if (!this.#store.current) return;
    this.#size ??= [this.photo.naturalWidth, this.photo.naturalHeight];
    this.answered();
  }

  /** Browsers don't turn images of every format by their EXIF tag; the server does. */
  #checkSize() {
    const image = this.#store.current;
    if (image.unknown) return this.#usePreview();
    if (!image.size || image.previewed || !this.#naturally() || this.photo.src !== image.url) return;
    const [width, height] = image.size;
    if (width !== this.photo.naturalWidth || height !== this.photo.naturalHeight) this.#usePreview();
  }

  /** The browser does not know the format. */
  #unknown() {
    const image = this.#store.current;
    if (!image || this.photo.src !== image.url) return;
    image.unknown = true;
    this.#usePreview();
  }

  async #usePreview() {
    const image = this.#store.current;
    if (!image.answer || image.previewed) return; // without an answer, asked again when there is one
    try {
      await image.usePreview();
      if (image === this.#store.current) this.photo.src = image.source();
    } catch {
      // The boxes stand on an empty ground then.
    }
  }

  #said(image) {
    const { problem } = image;
    const title = { bad_image: "This image can't be read", overloaded: "The server is busy", timeout: "The server took too long" };
    const again = image.state === "failed" && problem.kind !== "bad_image";
    return [
      h("h2", {}, title[problem.kind] ?? (image.state === "waiting" ? "The server is away" : "The server failed")),
      h("p", {}, problem.message),
      problem.hint ? h("p", { class: "dim" }, problem.hint) : null,
      image.state === "waiting" ? h("p", { class: "dim" }, "The image is sent by itself when it answers again.") : null,
      again ? h("button", { onclick: () => this.#store.retry(image) }, "Try again") : null,
    ].filter(Boolean);
  }

  #wheel(event) {
    if (!event.ctrlKey && !event.metaKey) return; // also what a pinch on a touchpad sends
    event.preventDefault();
    const rect = this.element.getBoundingClientRect();
    this.zoom(-event.deltaY / (event.deltaMode ? 3 : 100), event.clientX - rect.left, event.clientY - rect.top);
  }

  #pan() {
    let from = null;
    this.element.addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "mouse" || event.button || this.#scale === null) return;
      from = { x: event.clientX + this.element.scrollLeft, y: event.clientY + this.element.scrollTop };
    });
    addEventListener("pointermove", (event) => {
      if (from) this.element.scrollTo(from.x - event.clientX, from.y - event.clientY);
    });
    addEventListener("pointerup", () => (from = null));
  }
}

function boxGroup(answer, index) {
  const { box, index: kind } = answer.detections[index];
  const [x1, y1, x2, y2] = box;
  const at = { x: x1, y: y1, width: Math.max(LEAST, x2 - x1), height: Math.max(LEAST, y2 - y1) };
  const group = svg("g", { "data-index": index });
  group.append(svg("rect", { ...at, class: "shade" }), svg("rect", { ...at, class: "box" }));
  group.style.color = answer.model.colours[kind][0];
  return group;
}

const labelOf = (answer, index) => {
  const { index: kind, score } = answer.detections[index];
  return `${answer.model.classes[kind]} ${score.toFixed(2)}`;
};

function indexOf(target) {
  const group = target.closest?.("[data-index]");
  return group ? Number(group.dataset.index) : null;
}
