// Draws the report's charts and keeps everything marked with a dot at the chosen threshold. The arithmetic is that of
// eval/report/thresholds.py, on its counts. Text is only ever set as text.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const names = data.classes, last = names.length, CORRECT = 0;
  const kinds = data.table.kinds, instances = data.table.instances;
  const [category, found, claim, claimClass, covered] = data.table.boxes;
  const MOST_CONFUSED = 25;
  const DESCRIPTION = {
    localisation: "right class, badly placed: IoU 0.1 to 0.5",
    class: "well placed, wrong class",
    both: "badly placed and wrong class",
    duplicate: "the box was found already",
    background: "nothing is labelled there",
    missed: "a labelled box that nothing explains",
  };
  const byId = (id) => document.getElementById(id);
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const shown = (value, digits = 3) => (Number.isFinite(value) ? value.toFixed(digits) : "-");

  function element(name, attributes = {}, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }
  function svg(name, attributes = {}, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  }

  // above[class][kind][step]: detections at or above the threshold; the last class is all of them.
  const above = data.table.detections.map((of) => of.map((counts) => {
    const result = counts.slice();
    for (let step = result.length - 2; step >= 0; step--) result[step] += result[step + 1];
    return result;
  }));
  above.push(kinds.map((_, kind) => data.table.detections.length
    ? above[0][kind].map((_, step) => sum(above.map((of) => of[kind][step]))) : Array(101).fill(0)));
  const boxes = [...instances, sum(instances)];

  function at(place, step) {
    const right = above[place][CORRECT][step], every = sum(above[place].map((counts) => counts[step]));
    return {
      right, wrong: every - right, missed: boxes[place] - right, precision: right / every,
      recall: right / boxes[place], f1: boxes[place] ? 2 * right / (every + boxes[place]) : NaN,
    };
  }
  function confusion(step) {
    const table = Array.from({ length: last + 1 }, () => Array(last + 1).fill(0));
    for (let place = 0; place < last; place++) {
      table[last][place] = sum(above[place].map((counts, kind) => (kind === CORRECT ? 0 : counts[step])));
    }
    category.forEach((mine, box) => {
      if (found[box] >= step) table[mine][mine]++;
      else if (claim[box] >= step) { table[mine][claimClass[box]]++; table[last][claimClass[box]]--; }
      else table[mine][last]++;
    });
    return table;
  }

  // A chart in a 520 x 300 box: x and y are ranges, lines are {name, points, look}.
  const FRAME = { left: 42, right: 508, top: 12, bottom: 262 };
  function frame(holder, label, { x = [0, 1], y = [0, 1], xLabel = "", yLabel = "" }) {
    const root = svg("svg", { viewBox: "0 0 520 300", role: "img", "aria-label": label });
    const px = (value) => FRAME.left + (value - x[0]) / (x[1] - x[0]) * (FRAME.right - FRAME.left);
    const py = (value) => FRAME.bottom - (value - y[0]) / (y[1] - y[0]) * (FRAME.bottom - FRAME.top);
    for (let tick = 0; tick <= 5; tick++) {
      const vx = x[0] + (x[1] - x[0]) * tick / 5, vy = y[0] + (y[1] - y[0]) * tick / 5;
      root.append(
        svg("line", { class: "grid", x1: px(vx), x2: px(vx), y1: FRAME.top, y2: FRAME.bottom }),
        svg("line", { class: "grid", x1: FRAME.left, x2: FRAME.right, y1: py(vy), y2: py(vy) }),
        svg("text", { x: px(vx), y: FRAME.bottom + 16, "text-anchor": "middle" }, vx.toFixed(1)),
        svg("text", { x: FRAME.left - 6, y: py(vy) + 4, "text-anchor": "end" }, vy.toFixed(1)));
    }
    const across = (FRAME.left + FRAME.right) / 2;
    root.append(svg("text", { x: across, y: 296, "text-anchor": "middle" }, xLabel));
    root.append(svg("text", { x: 11, y: 140, "text-anchor": "middle", transform: "rotate(-90 11 140)" }, yLabel));
    holder.replaceChildren(root);
    return { root, px, py };
  }
  function lineChart(holder, label, lines, options) {
    const { root, px, py } = frame(holder, label, options);
    for (const line of lines) {
      let path = "", pen = false;
      for (const [vx, vy] of line.points) {
        pen = Number.isFinite(vy) && Boolean(path += `${pen ? "L" : "M"}${px(vx).toFixed(1)} ${py(vy).toFixed(1)}`);
      }
      root.append(svg("path", { class: `line ${line.look}`, d: path || "M0 0" }));
    }
    lines.forEach((line, row) => {
      const y = (options.legendTop ?? 190) + 18 * row, x = options.legendLeft ?? 60;
      root.append(svg("path", { class: `line ${line.look}`, d: `M${x} ${y}h22` }));
      root.append(svg("text", { class: "legend", x: x + 28, y: y + 4 }, line.name));
    });
    if (options.mark !== undefined) {
      const x = px(options.mark);
      root.append(svg("line", { class: "mark", x1: x, x2: x, y1: FRAME.top, y2: FRAME.bottom }));
    }
    const cross = svg("line", { class: "cross", y1: FRAME.top, y2: FRAME.bottom });
    const readout = element("p", { class: "readout" });
    root.append(cross);
    holder.append(readout);
    root.addEventListener("pointermove", (event) => {
      const box = root.getBoundingClientRect();
      const share = ((event.clientX - box.left) / box.width * 520 - FRAME.left) / (FRAME.right - FRAME.left);
      const place = Math.max(0, Math.min(100, Math.round(100 * share)));
      cross.setAttribute("x1", px(place / 100));
      cross.setAttribute("x2", px(place / 100));
      cross.style.visibility = "visible";
      const values = lines.map((line) => `${line.name.split(",")[0]} ${shown(line.points[place]?.[1])}`);
      readout.textContent = `${options.xLabel} ${(place / 100).toFixed(2)}: ${values.join(", ")}`;
    });
    root.addEventListener("pointerleave", () => { cross.style.visibility = "hidden"; readout.textContent = ""; });
    if (options.onPick) {
      root.addEventListener("click", (event) => {
        const box = root.getBoundingClientRect();
        const share = ((event.clientX - box.left) / box.width * 520 - FRAME.left) / (FRAME.right - FRAME.left);
        options.onPick(Math.max(0, Math.min(100, Math.round(100 * share))));
      });
    }
  }

  const STEPS = Array.from({ length: 101 }, (_, step) => step);
  function drawF1(step) {
    const place = Number(byId("f1-class").value);
    const values = STEPS.map((each) => at(place, each));
    const line = (key) => STEPS.map((each) => [each / 100, values[each][key]]);
    const best = data.best[place];
    lineChart(byId("f1-chart"), "F1, precision and recall against the threshold", [
      { name: `F1, best ${shown(values[best].f1)} at ${shown(best / 100, 2)}`, points: line("f1"), look: "c0" },
      { name: "precision", points: line("precision"), look: "c1" },
      { name: "recall", points: line("recall"), look: "c2" },
    ], { xLabel: "threshold", mark: step / 100, onPick: choose });
  }
  function drawPr() {
    const place = Number(byId("pr-class").value);
    const lines = Object.entries(data.pr).map(([name, curves], number) => {
      const curve = curves[place] ?? [];
      const mean = curve.length ? sum(curve) / curve.length : NaN;
      return {
        name: `IoU ${name}, area ${shown(mean)}`, look: number ? "c1 dashed" : "c0",
        points: curve.map((value, step) => [step / 100, value]),
      };
    });
    lineChart(byId("pr-chart"), "precision over recall", lines, { xLabel: "recall", yLabel: "precision" });
  }
  function drawCalibration() {
    const bins = data.calibration.bins, total = sum(bins.map((bin) => bin.detections)) || 1;
    const label = "share of right detections against the score";
    const { root, px, py } = frame(byId("calibration-chart"), label, { xLabel: "score", yLabel: "share that is right" });
    for (const bin of bins) {
      if (bin.precision === null) continue;
      const bar = (top, look) => svg("rect", {
        class: `bar ${look}`, x: px(bin.low) + 2, width: px(bin.high) - px(bin.low) - 4,
        y: py(top), height: FRAME.bottom - py(top),
      });
      const node = bar(bin.precision, "c0");
      node.append(svg("title", {}, `${bin.detections} detections, ${shown(bin.precision)} right`));
      root.append(node);
      root.append(svg("path", {
        class: "line c1", d: `M${px(bin.low) + 2} ${py(bin.score)}H${px(bin.high) - 2}`,
      }));
      byId("calibration-table").tBodies[0].append(element("tr", {},
        element("th", { scope: "row" }, `${bin.low.toFixed(1)} to ${bin.high.toFixed(1)}`),
        element("td", {}, `${bin.detections} (${(100 * bin.detections / total).toFixed(0)} %)`),
        element("td", {}, shown(bin.score)), element("td", {}, shown(bin.precision))));
    }
    root.append(svg("path", { class: "line c4 dashed", d: `M${px(0)} ${py(0)}L${px(1)} ${py(1)}` }));
    root.append(svg("path", { class: "line c1", d: "M60 26h22" }), svg("path", { class: "line c0", d: "M60 44h22" }));
    root.append(svg("text", { class: "legend", x: 88, y: 30 }, "mean score"));
    root.append(svg("text", { class: "legend", x: 88, y: 48 }, `right, error ${
      shown(data.calibration.expected_calibration_error ?? NaN)}`));
  }
  function drawErrors(step) {
    const counts = kinds.slice(1).map((name, index) => [name, above[last][index + 1][step]]);
    let missed = 0;
    found.forEach((value, box) => { if (value < step && covered[box] < step) missed++; });
    counts.push(["missed", missed]);
    const most = Math.max(1, ...counts.map(([, count]) => count));
    const root = svg("svg", { viewBox: `0 0 520 ${counts.length * 30}`, role: "img", "aria-label": "errors by type" });
    counts.forEach(([name, count], row) => {
      const look = name === "missed" ? "c3" : "c1", width = 330 * count / most;
      root.append(svg("text", { class: "legend", x: 96, y: 30 * row + 19, "text-anchor": "end" }, name));
      root.append(svg("rect", { class: `bar ${look}`, x: 104, y: 30 * row + 5, width, height: 19 }));
      root.append(svg("text", { x: 110 + width, y: 30 * row + 19 }, String(count)));
    });
    byId("error-chart").replaceChildren(root);
    byId("error-table").tBodies[0].replaceChildren(...counts.map(([name, count]) => element("tr", {},
      element("th", { scope: "row" }, name), element("td", {}, String(count)),
      element("td", {}, shown(data.gains[name] ?? NaN)), element("td", { class: "text" }, DESCRIPTION[name]))));
  }
  function drawConfusion(step) {
    const table = confusion(step), share = byId("confusion-share").checked;
    const mistakes = (place) => sum(table[place]) + sum(table.map((row) => row[place])) - 2 * table[place][place];
    const used = names.map((_, place) => place).filter((place) => sum(table[place]) + sum(table.map((r) => r[place])));
    const kept = used.slice().sort((one, other) => mistakes(other) - mistakes(one)).slice(0, MOST_CONFUSED);
    const order = [...kept.sort((one, other) => one - other), last];
    const named = (place) => (place === last ? "background" : names[place]);
    const head = element("tr", {}, element("th", { scope: "col" }, "labelled \\ detected"),
      ...order.map((place) => element("th", { scope: "col" }, named(place))));
    const rows = order.map((row) => {
      const total = sum(order.map((column) => table[row][column])), values = order.map((column) => {
        const count = table[row][column], part = total ? count / total : 0;
        const empty = row === last && column === last;
        const look = count ? "" : "zero", title = `${named(row)} called ${named(column)}: ${count}`;
        const cell = element("td", { title, class: look },
          empty ? "" : share ? shown(part, 2) : String(count));
        cell.style.backgroundColor = empty ? "" : `rgb(var(--heat) / ${(0.65 * part).toFixed(3)})`;
        return cell;
      });
      return element("tr", {}, element("th", { scope: "row" }, named(row)), ...values);
    });
    const drawn = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
    const left = used.length - kept.length;
    byId("confusion").replaceChildren(drawn,
      ...(left ? [element("p", { class: "note" }, `The ${kept.length} most confused; ${left} more are left out.`)] : []));
  }
  function updateTables(step) {
    const all = at(last, step);
    const figures = [["precision", shown(all.precision)], ["recall", shown(all.recall)], ["F1", shown(all.f1)],
      ["right", all.right], ["wrong", all.wrong], ["not found", all.missed]];
    byId("at-threshold").replaceChildren(...figures.map(([name, value]) => element("div", { class: "figure" },
      element("dt", {}, name), element("dd", { "data-name": name }, String(value)))));
    for (const row of byId("class-table").tBodies[0].rows) {
      const values = at(Number(row.dataset.class), step);
      for (const cell of row.querySelectorAll("[data-live]")) cell.textContent = shown(values[cell.dataset.live]);
    }
  }
  function updateBoxes(step) {
    for (const box of document.querySelectorAll(".box.detected")) box.classList.toggle("weak", box.dataset.step < step);
    for (const box of document.querySelectorAll(".box.truth")) box.classList.toggle("lost", box.dataset.step < step);
  }

  const slider = byId("threshold");
  function update() {
    const step = Number(slider.value);
    byId("threshold-value").textContent = (step / 100).toFixed(2);
    updateTables(step);
    drawF1(step);
    drawErrors(step);
    drawConfusion(step);
    updateBoxes(step);
  }
  function choose(step) {
    slider.value = step;
    update();
  }
  function sortable(table) {
    const head = table.tHead.rows[0], body = table.tBodies[0];
    const value = (row, column) => {
      const text = row.cells[column].textContent.trim(), number = Number(text.replace("−", "-"));
      return text === "-" || text === "" ? null : Number.isNaN(number) ? text : number;
    };
    [...head.cells].forEach((cell, column) => {
      const button = element("button", { type: "button" }, cell.textContent);
      cell.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = cell.getAttribute("aria-sort") !== "descending";
        for (const other of head.cells) other.removeAttribute("aria-sort");
        cell.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].map((row) => [value(row, column), row]);
        rows.sort(([one], [other]) => {
          if (one === null || other === null) return (one === null) - (other === null);  // what is not known goes last
          const order = typeof one === "number" && typeof other === "number"
            ? one - other : String(one).localeCompare(String(other));
          return down ? -order : order;
        });
        body.append(...rows.map(([, row]) => row));
      });
    });
  }

  for (const id of ["f1-class", "pr-class"]) {
    byId(id).append(element("option", { value: last }, "all classes"));
    names.forEach((name, place) => {
      if (instances[place]) byId(id).append(element("option", { value: place }, name));
    });
  }
  document.querySelectorAll("table.sortable").forEach(sortable);
  slider.addEventListener("input", update);
  byId("suggested").addEventListener("click", () => choose(data.threshold));
  byId("f1-class").addEventListener("change", update);
  byId("pr-class").addEventListener("change", drawPr);
  byId("confusion-share").addEventListener("change", update);
  drawPr();
  drawCalibration();
  update();
})();
