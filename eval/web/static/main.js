// Joins the page's parts: tabs, files that come in by drop, paste or choice, keys, and the look at the server every two
// seconds.

import { status as askStatus } from "./api.js";
import { $, bytes, h, plural } from "./dom.js";
import { Film, show as showFilm } from "./film.js";
import { Panel } from "./panel.js";
import { ServerTab } from "./server.js";
import { Stage } from "./stage.js";
import { MOST, Store } from "./store.js";
import { Strip } from "./strip.js";
import { View } from "./view.js";

const LOOK_EVERY = 2000; // ms; while the server is away, twice as often

const store = new Store();
const view = new View();
const stage = new Stage(store, view);
const panel = new Panel(store, view);
const strip = new Strip(store, view);
const serverTab = new ServerTab();

store.addEventListener("selected", () => {
  view.light(null);
  for (const image of store.images) if (image !== store.current) image.film?.pause();
  showFilm(store.current?.film ?? null);
  stage.show();
  panel.show();
  strip.show();
  caption();
});
store.addEventListener("changed", ({ detail: image }) => {
  if (image === store.current) {
    stage.answered();
    panel.show();
    caption();
  }
  panel.offerAll();
  strip.show();
});
store.addEventListener("away", ({ detail: problem }) => {
  away(problem.kind, problem.message, problem.hint);
  lookSoon(LOOK_EVERY / 2);
});
view.addEventListener("changed", () => {
  stage.drawBoxes();
  panel.filter();
  strip.count();
});
view.addEventListener("lit", () => {
  stage.light();
  panel.light();
});
view.addEventListener("reveal", ({ detail }) => stage.reveal(detail));
stage.element.addEventListener("picked", ({ detail }) => panel.focus(detail));

// ---- files -------------------------------------------------------------------------------------------------------

function take(files) {
  banner("");
  openTab("images");
  const isVideo = (file) => file.type.startsWith("video/") || /\.(mkv|mov|m4v|avi|ts|wmv|flv)$/i.test(file.name);
  for (const file of [...files].filter(isVideo)) {
    Film.file(store, file).catch((error) => banner(`${file.name}: ${error.message}. \`retinaserve predict\` reads more of them.`));
  }
  const left = store.add([...files].filter((file) => !isVideo(file)));
  if (left) banner(`${plural(left, "image")} left out: a page holds ${MOST}. \`retinaserve predict FOLDER\` takes any number.`);
}

/** Files of a drop or a paste, without the folders among them. */
function filesOf(transfer) {
  const items = [...transfer.items].filter((item) => item.kind === "file");
  const folders = items.filter((item) => item.webkitGetAsEntry?.()?.isDirectory).length;
  const files = items.filter((item) => !item.webkitGetAsEntry?.()?.isDirectory).map((item) => item.getAsFile()).filter(Boolean);
  return [files, folders];
}

function takeTransfer(transfer) {
  const [files, folders] = filesOf(transfer);
  if (files.length) take(files);
  if (folders) banner("Folders are not opened here; choose the images in it, or use `retinaserve predict FOLDER`.");
}

for (const id of ["add", "choose"]) $(id).addEventListener("click", () => $("files").click());
$("files").addEventListener("change", () => {
  if ($("files").files.length) take($("files").files);
  $("files").value = ""; // the same file may be chosen again
});

$("camera").addEventListener("click", () => {
  $("camera").blur(); // space is to pause it
  banner("");
  Film.camera(store).catch((error) => banner(`No camera: ${error.message}.`));
});
$("tile").addEventListener("change", () => store.cut($("tile").value));
const film = () => store.current?.film;
const playOrPause = () => film() && (film().playing ? film().pause() : film().play());
$("film-play").addEventListener("click", playOrPause);
$("film-back").addEventListener("click", () => film()?.step(-1));
$("film-next").addEventListener("click", () => film()?.step(1));
$("film-at").addEventListener("input", () => film()?.seek(Number($("film-at").value)));

let inside = 0; // dragenter and dragleave come for every element that is crossed
const dragsFiles = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", (event) => {
  if (!dragsFiles(event)) return;
  inside++;
  $("drop").hidden = false;
});
addEventListener("dragleave", (event) => {
  if (dragsFiles(event) && --inside <= 0) endDrag();
});
addEventListener("dragover", (event) => {
  if (dragsFiles(event)) event.preventDefault();
});
addEventListener("drop", (event) => {
  if (!dragsFiles(event)) return;
  event.preventDefault();
  endDrag();
  takeTransfer(event.dataTransfer);
});
function endDrag() {
  inside = 0;
  $("drop").hidden = true;
}
addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) takeTransfer(event.clipboardData);
});

// ---- the server --------------------------------------------------------------------------------------------------

let timer = 0;

async function look() {
  clearTimeout(timer);
  let status;
  try {
    status = await askStatus();
  } catch (problem) {
    status = { state: "down", message: problem.message, hint: problem.hint, gone: problem.kind === "gone" };
  }
  serverTab.add(status);
  if (status.state === "ready") ready(status);
  else away(status.gone ? "gone" : "down", status.message, status.hint);
  lookSoon(status.state === "ready" ? LOOK_EVERY : LOOK_EVERY / 2);
}

function lookSoon(pause) {
  clearTimeout(timer);
  timer = setTimeout(look, pause);
}

function ready({ server, model }) {
  store.limits.bytes = model.max_image_bytes;
  setState("ready", `${server}`);
  facts(model);
  if ($("banner").dataset.kind === "away") banner("");
  store.resume();
}

function away(kind, message, hint) {
  setState("away", kind === "gone" ? "page closed" : "server away");
  banner(`${message}${hint ? ` · ${hint}` : ""}`, "away");
}

function setState(state, text) {
  $("state").dataset.state = state;
  if ($("state-text").textContent !== text) $("state-text").textContent = text;
}

function facts(model) {
  const shown = model.classes.slice(0, 12).join(", ") + (model.classes.length > 12 ? " …" : "");
  const most = [
    model.max_image_bytes && `up to ${bytes(model.max_image_bytes)}`,
    model.max_image_pixels && `${Math.floor(model.max_image_pixels / 1e6)} megapixels`,
  ].filter(Boolean);
  const rows = [
    [plural(model.classes.length, "class", "classes"), shown],
    ["Takes", `JPEG, PNG, WebP, BMP, TIFF${most.length ? `; ${most.join(", ")}` : ""}`],
    ["Keeps", "nothing: images go to the server and are forgotten"],
  ];
  const text = JSON.stringify(rows);
  if ($("facts").dataset.text === text) return;
  $("facts").dataset.text = text;
  $("facts").replaceChildren(...rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

function banner(text, kind = "note") {
  if ($("banner").textContent !== text) $("banner").textContent = text;
  $("banner").dataset.kind = kind;
  $("banner").hidden = !text;
}

function caption() {
  const image = store.current;
  $("caption-name").textContent = image ? image.name : "";
  const size = image?.size;
  $("caption-size").textContent = image ? [size && `${size[0]} × ${size[1]}`, bytes(image.file.size)].filter(Boolean).join(" · ") : "";
}

// ---- tabs and keys -----------------------------------------------------------------------------------------------

const TABS = ["images", "server"];

function openTab(name) {
  for (const each of TABS) {
    $(each).hidden = each !== name;
    $(`tab-${each}`).setAttribute("aria-selected", String(each === name));
    $(`tab-${each}`).tabIndex = each === name ? 0 : -1;
  }
  if (name === "server") serverTab.show();
}
for (const each of TABS) $(`tab-${each}`).addEventListener("click", () => openTab(each));
document.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
  if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
  event.stopPropagation();
  const other = TABS.find((each) => $(each).hidden);
  openTab(other);
  $(`tab-${other}`).focus();
});

function setLabels(on) {
  $("labels-on").checked = on;
  $("frame").classList.toggle("unlabelled", !on);
}
$("labels-on").addEventListener("change", (event) => setLabels(event.target.checked));
$("zoom-in").addEventListener("click", () => stage.zoom(2));
$("zoom-out").addEventListener("click", () => stage.zoom(-2));
$("zoom-fit").addEventListener("click", () => stage.fit());
$("help-button").addEventListener("click", () => $("help").showModal());

const lowest = Number($("score").min);
const score = (step) => view.change({ score: Math.min(1, Math.max(lowest, Math.round((view.score + step) * 100) / 100)) });
const KEYS = {
  o: () => $("files").click(),
  ArrowLeft: () => store.step(-1),
  ArrowRight: () => store.step(1),
  "[": () => score(-0.05),
  "]": () => score(0.05),
  "+": () => stage.zoom(2),
  "=": () => stage.zoom(2),
  "-": () => stage.zoom(-2),
  0: () => stage.fit(),
  l: () => setLabels(!$("labels-on").checked),
  " ": playOrPause,
  ",": () => film()?.step(-1),
  ".": () => film()?.step(1),
  Delete: () => store.current && store.remove(store.current),
  "?": () => $("help").showModal(),
};
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  if ($("images").hidden && event.key !== "?") return;
  if (event.target.type === "range" && event.key.startsWith("Arrow")) return; // the slider's own
  if (event.key === " " && event.target.closest?.("button, input:not([type=range]), select")) return; // theirs
  const zoomed = stage.element.classList.contains("zoomed") && event.target === stage.element;
  if (zoomed && event.key.startsWith("Arrow")) return; // scrolls the zoomed image
  const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : look()));
panel.filter();
look();
