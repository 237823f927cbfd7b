// Draws the curves of a report: a panel for each metric, a curve for each group of runs.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const WIDTH = 440, HEIGHT = 230, LEFT = 52, RIGHT = 8, TOP = 8, BOTTOM = 24;
  const state = {smooth: 0, log: false, band: "range", hidden: new Set()};
  const colour = index => `var(--s${index % 7})`;

  function element(name, attributes, parent, text) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  }

  function html(name, attributes, parent, text) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  }

  function format(value) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    for (const [unit, suffix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"]])
      if (size >= unit && size < 1e15) return `${Number((value / unit).toPrecision(4))} ${suffix}`;
    return size >= 1e15 || size < 1e-3 ? value.toExponential(2)
      : String(Number(value.toPrecision(4)));
  }

  // An average that forgets, without the pull to 0 of its start; null has no value.
  function smoothed(values, weight) {
    if (!weight) return values;
    let sum = 0, total = 0;
    return values.map(value => {
      if (value === null) return null;
      sum = weight * sum + (1 - weight) * value;
      total = weight * total + (1 - weight);
      return sum / total;
    });
  }

  function quantile(sorted, share) {
    const place = (sorted.length - 1) * share, below = Math.floor(place);
    const above = Math.min(below + 1, sorted.length - 1);
    return sorted[below] + (place - below) * (sorted[above] - sorted[below]);
  }

  function summary(values) {
    const count = values.length, sorted = [...values].sort((a, b) => a - b);
    if (state.band !== "interval")
      return {middle: quantile(sorted, .5), low: sorted[0], high: sorted[count - 1]};
    const mean = values.reduce((a, b) => a + b, 0) / count;
    if (count < 2) return {middle: mean, low: mean, high: mean};
    const square = values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / (count - 1);
    const reach = data.student[count] * Math.sqrt(square / count);
    return {middle: mean, low: mean - reach, high: mean + reach};
  }

  // Points {step, middle, low, high, count} of a group, over the seeds that have a step.
  function points(runs) {
    const steps = new Map();
    for (const run of runs)
      run.steps.forEach((step, i) => {
        if (run.values[i] === null) return;
        if (!steps.has(step)) steps.set(step, []);
        steps.get(step).push(run.values[i]);
      });
    return [...steps.entries()].sort((a, b) => a[0] - b[0])
      .map(([step, values]) => ({step, count: values.length, ...summary(values)}));
  }

  function curves(metric) {
    const found = [];
    data.groups.forEach((group, index) => {
      if (state.hidden.has(index)) return;
      const runs = group.runs.filter(run => Object.hasOwn(run.metrics, metric)).map(run => ({
        seed: run.seed, steps: run.steps, values: smoothed(run.metrics[metric], state.smooth)}));
      const all = points(runs);
      if (all.length) found.push({index, name: group.name, events: group.events, runs, points: all});
    });
    return found;
  }

  function ticks(low, high, log) {
    if (log) {
      const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
      const every = Math.max(1, Math.ceil((last - first + 1) / 6)), found = [];
      for (let power = first; power <= last; power += every) found.push(10 ** power);
      return found.length > 1 ? found : [low, Math.sqrt(low * high), high];
    }
    const raw = (high - low) / 5, unit = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map(n => n * unit).find(n => n >= raw);
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++)
      found.push(Number((k * step).toPrecision(12)));
    return found;
  }

  function ranges(shown, log) {
    const usable = v => Number.isFinite(v) && (!log || v > 0);
    const values = shown.flatMap(curve => state.band === "seeds"
      ? curve.runs.flatMap(run => run.values.filter(v => v !== null))
      : curve.points.flatMap(p => [p.low, p.middle, p.high])).filter(usable);
    const steps = shown.flatMap(curve => curve.points.map(p => p.step));
    const least = list => list.reduce((a, b) => Math.min(a, b), Infinity);
    const most = list => list.reduce((a, b) => Math.max(a, b), -Infinity);
    let [low, high] = [least(values), most(values)];
    if (log && low === high) [low, high] = [low / 2, high * 2];
    if (!log && low === high) [low, high] = [low - Math.max(1e-12, Math.abs(low) / 2),
      high + Math.max(1e-12, Math.abs(high) / 2)];
    const margin = log ? 0 : (high - low) * .04;
    const [first, last] = [least(steps), most(steps)];
    return {low: low - margin, high: high + margin, first, last: last > first ? last : first + 1};
  }

  // Pieces of a path; a value that cannot be drawn ends a piece.
  function path(list, x, y) {
    let text = "", pen = false;
    for (const [step, value] of list) {
      const place = value === null ? NaN : y(value);
      if (!Number.isFinite(place)) { pen = false; continue; }
      text += `${pen ? "L" : "M"}${x(step).toFixed(1)} ${place.toFixed(1)}`;
      pen = true;
    }
    return text;
  }

  function drawAxes(svg, range, x, y, log) {
    for (const value of ticks(range.low, range.high, log)) {
      const place = y(value);
      element("line", {x1: LEFT, x2: WIDTH - RIGHT, y1: place, y2: place, class: "tick"}, svg);
      element("text", {x: LEFT - 5, y: place + 3.5, "text-anchor": "end"}, svg, format(value));
    }
    for (const step of ticks(range.first, range.last, false)) {
      if (!Number.isInteger(step)) continue;
      const last = x(step) > WIDTH - RIGHT - 20; // its text would be cut off
      element("text", {x: last ? WIDTH - 2 : x(step), y: HEIGHT - 8,
        "text-anchor": last ? "end" : "middle"}, svg, format(step));
    }
  }

  function drawCurve(svg, curve, x, y, floor) {
    const stroke = colour(curve.index);
    if (state.band === "seeds") {
      for (const run of curve.runs) {
        const list = run.steps.map((step, i) => [step, run.values[i]]);
        const thin = curve.runs.length > 1 ? " thin" : "";
        element("path", {d: path(list, x, y), class: `curve${thin}`, stroke}, svg);
      }
      return;
    }
    if (curve.points.some(p => p.count > 1)) {
      const kept = curve.points.filter(p => Number.isFinite(y(p.high)));
      const up = kept.map(p => `${x(p.step).toFixed(1)} ${y(p.high).toFixed(1)}`);
      const down = kept.map(p => {
        const place = y(p.low);
        return `${x(p.step).toFixed(1)} ${(Number.isFinite(place) ? place : floor).toFixed(1)}`;
      }).reverse();
      element("path", {d: `M${[...up, ...down].join("L")}Z`, class: "band", fill: stroke}, svg);
    }
    const list = curve.points.map(p => [p.step, p.middle]);
    element("path", {d: path(list, x, y), class: "curve", stroke}, svg);
    for (const p of curve.points.length < 12 ? curve.points : [])
      if (Number.isFinite(y(p.middle)))
        element("circle", {cx: x(p.step), cy: y(p.middle), r: 2, fill: stroke}, svg);
  }

  function drawEvents(svg, curve, range, x) {
    for (const event of curve.events) {
      if (event.step < range.first || event.step > range.last) continue;
      const place = x(event.step), foot = HEIGHT - BOTTOM;
      const mark = element("path", {class: "event", fill: colour(curve.index),
        d: `M${place} ${foot - 8}l4 8h-8z`}, svg);
      element("title", {}, mark, event.text);
    }
  }

  function tell(panel, svg, shown, range, x, y, event) {
    const box = svg.getBoundingClientRect();
    const wanted = range.first + ((event.clientX - box.left) / box.width * WIDTH - LEFT)
      / (WIDTH - LEFT - RIGHT) * (range.last - range.first);
    const nearest = curve => curve.points.reduce((best, p) =>
      Math.abs(p.step - wanted) < Math.abs(best.step - wanted) ? p : best);
    const at = shown.map(nearest).reduce((best, p) =>
      Math.abs(p.step - wanted) < Math.abs(best.step - wanted) ? p : best).step;
    hush(panel);
    element("line", {x1: x(at), x2: x(at), y1: TOP, y2: HEIGHT - BOTTOM, class: "cursor hover"}, svg);
    const tip = html("div", {class: "tip"}, panel);
    html("div", {}, tip, `step ${at.toLocaleString("en")}`);
    for (const curve of shown) {
      const p = nearest(curve), row = html("div", {}, tip);
      html("span", {class: "key", style: `background:${colour(curve.index)}`}, row);
      const spread = p.count > 1 ? ` (${format(p.low)} to ${format(p.high)}, ${p.count} seeds)` : "";
      const other = p.step === at ? "" : ` at step ${p.step.toLocaleString("en")}`;
      row.append(`${curve.name}: ${format(p.middle)}${spread}${other}`);
      if (Number.isFinite(y(p.middle)))
        element("circle", {cx: x(p.step), cy: y(p.middle), r: 3, class: "hover",
          fill: colour(curve.index)}, svg);
    }
    const place = (x(at) / WIDTH) * box.width + 18;
    const limit = panel.clientWidth - tip.offsetWidth - 4;
    tip.style.left = `${Math.max(4, place > limit ? place - tip.offsetWidth - 30 : place)}px`;
    tip.style.top = `${panel.clientHeight - 6}px`;
  }

  function hush(panel) {
    panel.querySelectorAll(".tip, .hover").forEach(old => old.remove());
  }

  function draw(panel) {
    const metric = panel.dataset.metric, shown = curves(metric);
    panel.replaceChildren();
    panel.hidden = !shown.length;
    if (panel.hidden) return;
    const title = html("h4", {}, panel, metric);
    const svg = element("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img",
      "aria-label": metric}, panel);
    const positive = shown.every(curve => curve.points.every(p => p.middle > 0));
    const log = state.log && positive;
    if (state.log && !positive) html("span", {}, title, " (linear: not all values are positive)");
    const range = ranges(shown, log), foot = HEIGHT - BOTTOM;
    const scale = log ? Math.log : v => v;
    const x = step => LEFT + (step - range.first) / (range.last - range.first)
      * (WIDTH - LEFT - RIGHT);
    const y = value => foot - (scale(value) - scale(range.low))
      / (scale(range.high) - scale(range.low)) * (foot - TOP);
    drawAxes(svg, range, x, y, log);
    for (const curve of shown) drawCurve(svg, curve, x, y, foot);
    for (const curve of shown) drawEvents(svg, curve, range, x);
    svg.addEventListener("pointermove", event => tell(panel, svg, shown, range, x, y, event));
    svg.addEventListener("pointerleave", () => hush(panel));
  }

  const panels = [...document.querySelectorAll(".chart")];
  const redraw = () => panels.forEach(draw);

  function control(name, event, change) {
    const found = document.getElementById(name);
    if (found) found.addEventListener(event, () => { change(found); redraw(); });
  }
  control("smooth", "input", input => {
    state.smooth = Number(input.value);
    document.getElementById("smooth-value").textContent = input.value;
  });
  control("log", "change", input => { state.log = input.checked; });
  control("band", "change", input => { state.band = input.value; });
  document.querySelectorAll(".legend button").forEach((button, index) => {
    button.addEventListener("click", () => {
      const hide = !state.hidden.has(index);
      if (hide) state.hidden.add(index); else state.hidden.delete(index);
      button.setAttribute("aria-pressed", String(!hide));
      redraw();
    });
  });
  const theme = document.getElementById("theme");
  theme.addEventListener("click", () => {
    const dark = getComputedStyle(document.documentElement).colorScheme === "dark";
    document.documentElement.dataset.theme = dark ? "light" : "dark";
  });
  redraw();
})();
