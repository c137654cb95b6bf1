// The column beside the image: score, classes, the list of boxes, where the time went, and copying.

import { $, h, ms, plural } from "./dom.js";
import { asCoco, asJson, copy } from "./takeaway.js";

const PARTS = { queue: "waiting in the server's queues", wait: "behind this page's other images", way: "sending, answering" };

export class Panel {
  #store;
  #view;

  constructor(store, view) {
    this.#store = store;
    this.#view = view;
    $("score").addEventListener("input", () => view.change({ score: Number($("score").value) }));
    $("list").addEventListener("pointerover", (event) => view.light(indexOf(event.target)));
    $("list").addEventListener("pointerleave", () => view.light(null));
    $("list").addEventListener("focusin", (event) => view.light(indexOf(event.target)));
    $("list").addEventListener("focusout", () => view.light(null));
    $("list").addEventListener("keydown", (event) => this.#walk(event));
    $("copy-json").addEventListener("click", () => this.#copy(asJson, "JSON"));
    $("copy-coco").addEventListener("click", () => this.#copy(asCoco, "a COCO data set"));
  }

  /** Show everything of the current image. */
  show() {
    const image = this.#store.current;
    const answer = image?.answer ?? null;
    this.#classes(answer);
    this.#list(answer);
    this.#times(image);
    $("take").hidden = !answer;
    this.offerAll();
    $("copied").textContent = "What is shown above, score and classes applied.";
  }

  /** Offer to copy all images when there are several. */
  offerAll() {
    const several = this.#answered().length > 1;
    $("all-label").hidden = !several;
    if (!several) $("all").checked = false;
  }

  /** Follow the score and the classes. */
  filter() {
    $("score").value = this.#view.score;
    $("score-text").textContent = this.#view.score.toFixed(2);
    this.show();
  }

  /** Light the list's entry of the box that is lit. */
  light() {
    for (const entry of $("list").children) {
      entry.classList.toggle("lit", Number(entry.dataset.index) === this.#view.lit);
    }
    if (!$("list").matches(":hover, :focus-within")) {
      $("list").querySelector(".lit")?.scrollIntoView({ block: "nearest" });
    }
  }

  /** Put the focus on a box's entry. */
  focus(index) {
    $("list").querySelector(`[data-index="${index}"] button`)?.focus();
  }

  #classes(answer) {
    const counts = new Map();
    for (const { index, score } of answer?.detections ?? []) {
      const name = answer.model.classes[index];
      const entry = counts.get(name) ?? { index, count: 0 };
      if (score >= this.#view.score) entry.count++;
      counts.set(name, entry);
    }
    const box = $("classes");
    const focused = document.activeElement?.dataset?.name;
    box.hidden = counts.size === 0 || answer.model.classes.length < 2;
    const chips = [...counts].sort((a, b) => b[1].count - a[1].count || a[1].index - b[1].index).map(([name, { index, count }]) => {
      const toggle = h("input", {
        type: "checkbox",
        "data-name": name,
        onchange: (event) => {
          const off = new Set(this.#view.off);
          off[event.target.checked ? "delete" : "add"](name);
          this.#view.change({ off });
        },
      });
      toggle.checked = !this.#view.off.has(name);
      return h("label", { class: "chip" }, toggle, swatch(answer, index), h("span", { class: "name" }, name), h("span", { class: "dim" }, String(count)));
    });
    box.replaceChildren(box.querySelector("legend"), ...chips);
    if (focused) box.querySelector(`[data-name="${CSS.escape(focused)}"]`)?.focus();
  }

  #list(answer) {
    const shown = this.#view.shown(answer);
    const found = answer?.detections.length ?? 0;
    $("count").textContent = answer ? (shown.length === found ? plural(found, "box", "boxes") : `${shown.length} of ${plural(found, "box", "boxes")}`) : "";
    const state = this.#store.current?.state;
    $("nothing").hidden = shown.length > 0;
    $("nothing").textContent = !answer
      ? { failed: "No boxes: the image has no answer.", sending: "Looking …" }[state] ?? "The boxes of an image are listed here."
      : found
        ? "Nothing passes the score and the classes above."
        : `Nothing was found above ${answer.model.score_threshold}, the server's own threshold.`;
    $("list").replaceChildren(...shown.map((i, n) => this.#entry(answer, i, n)));
  }

  #entry(answer, i, n) {
    const { index, score, box } = answer.detections[i];
    const [x1, y1, x2, y2] = box.map(Math.round);
    const meter = h("span", { class: "meter" }, h("span"));
    meter.firstChild.style.width = `${score * 100}%`;
    meter.firstChild.style.background = answer.model.colours[index][0];
    const where = `${x1}, ${y1} · ${x2 - x1} × ${y2 - y1}`;
    return h(
      "li",
      { "data-index": i },
      h(
        "button",
        { tabindex: n ? -1 : 0, title: `x, y · width × height: ${where}`, onclick: () => this.#view.dispatchEvent(new CustomEvent("reveal", { detail: i })) },
        swatch(answer, index),
        h("span", { class: "name" }, answer.model.classes[index]),
        h("span", { class: "where dim" }, where),
        meter,
        h("span", { class: "score" }, score.toFixed(2)),
      ),
    );
  }

  #walk(event) {
    const entry = event.target.closest("li");
    const to = { ArrowDown: entry?.nextSibling, ArrowUp: entry?.previousSibling, Home: $("list").firstChild, End: $("list").lastChild }[event.key];
    if (!to) return;
    event.preventDefault();
    event.stopPropagation();
    for (const button of $("list").querySelectorAll("[tabindex='0']")) button.tabIndex = -1;
    to.firstChild.tabIndex = 0;
    to.firstChild.focus();
  }

  #times(image) {
    const timing = image?.answer?.timing;
    $("time").hidden = !image?.answer;
    if (!image?.answer) return;
    $("elapsed").textContent = ms(image.elapsed);
    const rows = [];
    if (timing) {
      if (timing.wait_ms >= 1) rows.push(["wait", PARTS.wait, timing.wait_ms]);
      rows.push(["queue", PARTS.queue, sum(timing.steps.map((step) => step.queue_ms))]);
      timing.steps.forEach((step, n) => rows.push([`step${n}`, step.name, step.compute_ms]));
      const known = sum(rows.map((row) => row[2]));
      rows.push(["way", PARTS.way, Math.max(0, image.elapsed - known)]);
    }
    $("bar").replaceChildren(
      ...rows.map(([kind, , value]) => {
        const part = h("span", { class: kind });
        part.style.flexGrow = value;
        return part;
      }),
    );
    $("parts").replaceChildren(...rows.map(([kind, name, value]) => h("div", {}, h("dt", { class: kind }, name), h("dd", {}, ms(value)))));
    $("time-note").textContent = !timing
      ? "The server did not tell its part."
      : timing.requests === 1
        ? "Of this image alone, by the server's own clock."
        : `The server's parts are the mean of ${timing.requests} requests: others asked it meanwhile.`;
  }

  #answered() {
    return this.#store.images.filter((image) => image.answer);
  }

  async #copy(make, kind) {
    const images = $("all").checked ? this.#answered() : [this.#store.current];
    const done = await copy(make(images, this.#view));
    const boxes = sum(images.map((image) => this.#view.shown(image.answer).length));
    $("copied").textContent = done
      ? `Copied ${plural(boxes, "box", "boxes")} of ${plural(images.length, "image")} as ${kind}.`
      : "The browser does not let this page copy.";
  }
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

function swatch(answer, index) {
  const element = h("span", { class: "swatch", "aria-hidden": "true" });
  element.style.background = answer.model.colours[index][0];
  return element;
}

function indexOf(target) {
  const entry = target.closest?.("li");
  return entry ? Number(entry.dataset.index) : null;
}
