// The second tab: how the server is, from what it counts. Numbers of the last minute are differences between looks.

import { $, bytes, h, ms, plural, svg } from "./dom.js";

const KEPT = 60_000; // ms
const RECENT = 5; // looks, ten seconds
const SUMS = ["inferences", "executions", "requests", "failed", "queue_ms", "compute_ms", "total_ms"];
const HEADS = [
  ["Model", ""],
  ["State", ""],
  ["Requests", "answered well"],
  ["Failed", "as Triton counts"],
  ["Mean batch", "images an execution"],
  ["Queue", "mean wait of a request"],
  ["At work", "mean of a request, tensors moved included"],
  ["Latency", "mean, from arrival to answer"],
];

export class ServerTab {
  #looks = []; // {at, status}, of the last minute
  #since = "minute";

  /** Take a look in, and draw it when the tab is open. */
  add(status) {
    const now = performance.now();
    const last = this.#looks.at(-1);
    if (status.state !== "ready" || (last && restarted(last.status, status))) this.#looks = [];
    this.#looks.push({ at: now, status });
    while (this.#looks.length > 2 && this.#looks[1].at < now - KEPT) this.#looks.shift();
    if (!$("server").hidden) this.show();
  }

  show() {
    const status = this.#looks.at(-1)?.status;
    const focused = document.activeElement?.value;
    const content = !status
      ? [h("p", { class: "dim" }, "Asking the server …")]
      : status.state === "ready"
        ? this.#ready(status)
        : [h("div", { class: "card away" }, h("h2", {}, "The server is away"), h("p", {}, status.message), h("p", { class: "dim" }, status.hint || ""))];
    $("server").replaceChildren(...content);
    if (focused) $("server").querySelector(`input[value="${focused}"]`)?.focus();
  }

  #ready(status) {
    const { model, metrics } = status;
    const limits = [
      model.size ? `${model.size[0]} × ${model.size[1]} px inside` : null,
      `score above ${model.score_threshold}`,
      model.max_image_bytes ? `files to ${bytes(model.max_image_bytes)}` : null,
      model.max_image_pixels ? `images to ${(model.max_image_pixels / 1e6).toLocaleString("en")} MP` : null,
    ].filter(Boolean);
    return [
      h("div", { class: "title" }, h("h2", {}, `Triton ${status.version}`), h("p", { class: "dim" }, `${status.server} · ${limits.join(" · ")}`)),
      h("div", { class: "tiles" }, ...this.#tiles(status, metrics)),
      this.#table(status),
      h("details", { class: "card" }, h("summary", {}, plural(model.classes.length, "class", "classes")), h("p", {}, model.classes.join(", "))),
      h("p", { class: "dim" }, this.#sources(status)),
    ];
  }

  #tiles(status, metrics) {
    const recent = this.#delta(status.model.name);
    const rates = this.#series(status.model.name, (change, seconds) => change.requests / seconds);
    const latencies = this.#series(status.model.name, (change) => (change.requests ? change.total_ms / change.requests : null));
    const total = status.models.find((each) => each.name === status.model.name);
    const tiles = [
      tile("Requests", total.requests.toLocaleString("en"), recent ? `${recent.requests} in the last minute` : "", null),
      tile("Rate", `${mean(rates.slice(-RECENT)).toFixed(1)} / s`, "", spark(rates)),
      tile("Latency", recent.requests ? ms(recent.total_ms / recent.requests) : "–", recent.requests ? "" : "no request in the last minute", spark(latencies)),
      tile("Failed", total.failed.toLocaleString("en"), metrics && "bad_images" in metrics ? `${plural(metrics.bad_images, "bad image")}` : "", null, total.failed > 0 ? "warn" : ""),
    ];
    if (metrics && "pending" in metrics) tiles.push(tile("Waiting", metrics.pending.toLocaleString("en"), "requests in the queues"));
    for (const [what, name] of [["gpu_utilization", "GPU"], ["cpu_utilization", "CPU"]]) {
      if (metrics && what in metrics) tiles.push(tile(name, `${Math.round(metrics[what] * 100)} %`, memory(metrics, what.slice(0, 3))));
    }
    return tiles;
  }

  #table(status) {
    const choice = (value, text) => {
      const input = h("input", { type: "radio", name: "since", value, onchange: () => ((this.#since = value), this.show()) });
      input.checked = this.#since === value;
      return h("label", {}, input, h("span", {}, text));
    };
    const rows = status.models.map((each) => {
      const sums = this.#since === "minute" ? this.#delta(each.name) : each;
      const meanOf = (key) => (sums.requests ? ms(sums[key] / sums.requests) : "–");
      const step = each.executions > 0 && each.name !== status.model.name; // an ensemble executes nothing itself
      return h(
        "tr",
        {},
        h("th", { scope: "row" }, each.name, h("span", { class: "dim" }, each.version ? ` v${each.version}` : "")),
        h("td", {}, h("span", { class: `pill ${each.state === "READY" || !each.state ? "ok" : "bad"}`, title: each.reason || null }, (each.state || "serving").toLowerCase())),
        h("td", {}, sums.requests.toLocaleString("en")),
        h("td", { class: sums.failed ? "bad" : null }, sums.failed.toLocaleString("en")),
        h("td", {}, step && sums.executions ? (sums.inferences / sums.executions).toFixed(1) : "–"),
        h("td", {}, step ? meanOf("queue_ms") : "–"),
        h("td", {}, step ? meanOf("compute_ms") : "–"),
        h("td", {}, meanOf("total_ms")),
      );
    });
    return h(
      "div",
      { class: "card" },
      h("div", { class: "head" }, h("h2", {}, "Models"), h("div", { class: "choice", role: "radiogroup", "aria-label": "Numbers of" }, choice("minute", "last minute"), choice("start", "since its start"))),
      h("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Models" }, h("table", {}, h("thead", {}, h("tr", {}, ...HEADS.map(([head, title]) => h("th", { scope: "col", title: title || null }, head)))), h("tbody", {}, ...rows))),
    );
  }

  #sources(status) {
    // 2.51 counts the step's failure and the ensemble's own for one request.
    const twice = status.version.startsWith("2.51") && status.models.some((each) => each.failed) ? " Triton 2.51 counts a request that fails in a step twice." : "";
    return this.#where(status) + twice;
  }

  #where(status) {
    if (status.metrics) return `Counts and times are Triton's statistics; waiting, bad images and load are its metrics at ${status.metrics_at}. Warm-up requests at the start are counted too.`;
    return status.metrics_at
      ? `Counts and times are Triton's statistics. No metrics answer at ${status.metrics_at}.`
      : "Counts and times are Triton's statistics. Start the page with --metrics HOST:PORT to see load and refused images.";
  }

  /** What a model's sums grew by in the last minute. */
  #delta(name) {
    return change(this.#looks[0], this.#looks.at(-1), name);
  }

  #series(name, value) {
    return this.#looks.slice(1).map((look, n) => value(change(this.#looks[n], look, name), (look.at - this.#looks[n].at) / 1000));
  }
}

const sumsOf = (look, name) => look.status.models.find((each) => each.name === name);

function change(from, to, name) {
  const [before, after] = [sumsOf(from, name), sumsOf(to, name)];
  return Object.fromEntries(SUMS.map((key) => [key, after ? after[key] - (before?.[key] ?? 0) : 0]));
}

const restarted = (before, after) =>
  before.state !== "ready" || (after.models ?? []).some((each) => each.requests < (before.models.find((was) => was.name === each.name)?.requests ?? 0));

const tile = (name, value, note = "", extra = null, kind = "") =>
  h("div", { class: `tile ${kind}` }, h("span", { class: "name" }, name), h("strong", {}, value), extra ?? h("span", { class: "dim" }, note));

const mean = (values) => (values.length ? values.reduce((total, value) => total + value, 0) / values.length : 0);

const memory = (metrics, kind) => {
  const [used, all] = kind === "gpu" ? [metrics.gpu_memory_used, metrics.gpu_memory_total] : [metrics.memory_used, metrics.memory_total];
  return all ? `${bytes(used)} of ${bytes(all)}` : "";
};

/** A line of the last minute's values; gaps where there is none. */
function spark(values) {
  const most = Math.max(...values.filter((value) => value !== null), 0);
  const chart = svg("svg", { class: "spark", viewBox: "0 0 120 28", preserveAspectRatio: "none", "aria-hidden": "true" });
  const step = 120 / 29;
  const at = (value, n) => `${(120 - (values.length - 1 - n) * step).toFixed(1)},${(26 - (most ? value / most : 0) * 24).toFixed(1)}`;
  const points = values.map((value, n) => (value === null ? null : at(value, n))).filter(Boolean);
  if (points.length > 1) chart.append(svg("polyline", { points: points.join(" ") }));
  else if (points.length) chart.append(svg("circle", { cx: points[0].split(",")[0], cy: points[0].split(",")[1], r: 2 }));
  return chart;
}
