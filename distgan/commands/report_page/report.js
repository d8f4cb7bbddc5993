"use strict";
// Draws the page from the two blocks of JSON in it. Text from a run gets into the page as text alone, never as markup.
const report = JSON.parse(document.getElementById("content").textContent);
const pictures = JSON.parse(document.getElementById("pictures").textContent);
const several = report.runs.length > 1;
const view = { smoothing: 0, scale: "auto", from: null, to: null, hidden: new Set() };
const charts = [];

// ---- Making elements

function make(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function draw(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child != null));
  return element;
}

function section(title, ...children) {
  const id = title.toLowerCase().replace(/\W+/g, "-");
  const link = make("a", { href: `#${id}` }, title);
  document.getElementById("nav").append(link);
  const element = make("section", { id, "aria-label": title }, make("h2", {}, title), ...children);
  document.getElementById("main").append(element);
  return element;
}

function color(number) {
  return `c${number % 8}`;
}

// ---- Numbers in words

function tell(value, digits = 4) {
  if (value == null) return "not finite";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(digits - 2).replace(/\.?0*e\+?/, "e");
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  return Number(value.toPrecision(digits)).toLocaleString("en-US", { maximumFractionDigits: 12 });
}

function kimg(images) {
  return `${tell(images / 1000, 6)} kimg`;
}

function bytes(count) {
  const power = count < 1 ? 0 : Math.min(4, Math.floor(Math.log2(count) / 10));
  return `${Number((count / 1024 ** power).toPrecision(3))} ${["bytes", "KiB", "MiB", "GiB", "TiB"][power]}`;
}

function ago(seconds) {
  const units = [["day", 86400], ["hour", 3600], ["minute", 60]];
  for (const [unit, length] of units) {
    const count = Math.floor(seconds / length);
    if (count > 0) return `${count} ${unit}${count > 1 ? "s" : ""} ago`;
  }
  return "just now";
}

function label(key) {
  const parts = (report.protocols.length > 1 ? key.replace(/^(eval\/.*) \(\w+\)$/, "$1") : key).split("/");
  return (parts.length > 1 ? parts.slice(1) : parts).join(" ").replaceAll("_", " ");
}

// ---- Charts

class Chart {
  constructor(title, log, lines) {
    Object.assign(this, { title, logByDefault: log, log: null, lines, off: new Set(), at: null });
    this.svg = draw("svg", {
      tabindex: "0", role: "img",
      "aria-label": `${title}: arrow keys read the values, plus and minus zoom, 0 shows the whole run`,
      onpointermove: (event) => this.move(event), onpointerleave: () => this.leave(),
      onpointerdown: (event) => this.press(event), onpointerup: (event) => this.release(event),
      onpointercancel: () => { this.dragged = null; this.hover(null); },
      ondblclick: () => zoom(null, null), onkeydown: (event) => this.type(event), onblur: () => this.leave(),
    });
    this.tip = make("div", { class: "tip", role: "status", hidden: true });
    this.scaleButton = make("button", {
      type: "button", onclick: () => { this.log = !this.isLog(); this.render(); }, title: "Scale of this y axis",
    });
    this.legend = make("div", { class: "legend", role: "group", "aria-label": `Curves of ${title}` });
    this.figure = make("figure", { class: "chart card", "data-chart": title },
      make("div", { class: "head" }, make("h3", {}, title), this.scaleButton),
      make("div", { class: "plot" }, this.svg, this.tip), this.legend);
    // Of several runs each curve is a run, and the runs' own buttons at the top of the page are the legend.
    if (!several) lines.forEach((line) => this.legend.append(this.toggle(line)));
    else this.legend.remove();
    charts.push(this);
  }

  toggle(line) {
    return make("button", {
      type: "button", class: `key ${color(line.color)}`, "aria-pressed": "true",
      onclick: (event) => {
        const shown = this.off.delete(line) || !this.off.add(line);
        event.currentTarget.setAttribute("aria-pressed", shown);
        this.render();
      },
    }, make("i"), make("span", {}, line.name));
  }

  isLog() {
    return this.log ?? (view.scale === "auto" ? this.logByDefault : view.scale === "log");
  }

  shown() {
    return this.lines.filter((line) => !this.off.has(line) && !view.hidden.has(line.run));
  }

  render() {
    const box = this.svg.getBoundingClientRect();
    if (!box.width) return;
    const log = this.isLog(), lines = this.shown();
    this.scaleButton.textContent = log ? "log" : "linear";
    this.scaleButton.setAttribute("aria-label", `${this.title}: y axis is ${log ? "logarithmic" : "linear"}`);
    const [from, to] = range();
    const good = (value) => value != null && (!log || value > 0);
    let low = Infinity, high = -Infinity;
    for (const line of lines) {
      const { x, curve } = line, smooth = smoothed(line) ?? curve.mean;
      const lows = curve.low ?? curve.mean, highs = curve.high ?? curve.mean;
      for (let i = 0; i < x.length; i++) {
        if (x[i] < from || x[i] > to) continue;
        const values = [lows[i], curve.mean[i], highs[i], smooth[i]].filter(good);
        low = Math.min(low, ...values);
        high = Math.max(high, ...values);
      }
    }
    const empty = low > high;
    if (empty) [low, high] = log ? [1, 10] : [0, 1];
    const scale = log ? Math.log10 : (value) => value;
    let [bottom, top] = [scale(low), scale(high)];
    const room = (top - bottom) * 0.06 || Math.abs(top) * 0.1 || 0.5;
    [bottom, top] = [bottom - (low === 0 && !log ? 0 : room), top + room];
    const marks = log ? logTicks(bottom, top) : ticks(bottom, top, 5);
    const words = marks.map((value) => tell(value, 3));
    const left = 12 + 6.4 * Math.max(4, ...words.map((word) => word.length));
    const frame = { left, right: box.width - 10, top: 14, bottom: box.height - 22 };
    const px = (x) => frame.left + ((x - from) / (to - from || 1)) * (frame.right - frame.left);
    const py = (y) => frame.bottom - ((scale(y) - bottom) / (top - bottom)) * (frame.bottom - frame.top);
    Object.assign(this, { frame, px, py, good });

    const back = draw("g"), front = draw("g");
    marks.forEach((value, i) => back.append(
      draw("line", { class: "rule", x1: frame.left, x2: frame.right, y1: py(value), y2: py(value) }),
      draw("text", { x: frame.left - 6, y: py(value) + 4, "text-anchor": "end" }, words[i])));
    const xs = ticks(from, to, Math.max(2, Math.floor((frame.right - frame.left) / 65)));
    xs.filter((value) => px(value) > frame.left + 8).forEach((value) => back.append(
      draw("text", { x: px(value), y: box.height - 6, "text-anchor": "middle" }, tell(value / 1000, 6))));
    back.append(
      draw("line", { class: "axis", x1: frame.left, x2: frame.right, y1: frame.bottom, y2: frame.bottom }),
      draw("text", { x: frame.left - 6, y: box.height - 6, "text-anchor": "end" }, "kimg"));
    restartMarks(lines, from, to).forEach(({ x, run, number }) => back.append(
      draw("g", {}, draw("title", {}, `${several ? `${report.runs[run].name}: ` : ""}restart ${number} after ${kimg(x)}`),
        draw("line", { class: "restart", x1: px(x), x2: px(x), y1: frame.top, y2: frame.bottom }),
        draw("text", { class: `restart-mark ${several ? color(run) : ""}`, x: px(x), y: 10 }, "↻"))));
    for (const line of lines) front.append(this.curve(line, from, to));
    if (empty) front.append(draw("text", { x: (frame.left + frame.right) / 2, y: box.height / 2, "text-anchor": "middle" },
      lines.length ? (log ? "no positive values here" : "no values here") : "every curve is switched off"));
    const clip = `clip${charts.indexOf(this)}`;
    front.setAttribute("clip-path", `url(#${clip})`);
    this.over = draw("g", { "pointer-events": "none" });
    this.svg.replaceChildren(
      draw("clipPath", { id: clip }, draw("rect", {
        x: frame.left - 3, y: 0, width: Math.max(0, frame.right - frame.left + 6), height: box.height })),
      back, front, this.over);
    this.at = null;
    this.tip.hidden = true;
  }

  curve(line, from, to) {
    const { x, curve } = line, { px, py, good, frame } = this;
    const group = draw("g", { class: color(line.color), "data-key": line.key, "data-run": line.run });
    const first = Math.max(0, x.findIndex((value) => value >= from) - 1);
    let last = x.length - 1;
    while (last > first && x[last - 1] > to) last--;
    const point = (i, value) => `${px(x[i]).toFixed(1)} ${py(value).toFixed(1)}`;
    // Runs of values without a gap.
    const pieces = [];
    for (let i = first, open = null; i <= last; i++) {
      if (!good(curve.mean[i])) open = null;
      else if (open) open.push(i);
      else pieces.push((open = [i]));
    }
    const path = (values) => pieces.map((piece) => "M" + piece.map((i) => point(i, values[i])).join("L")).join("");
    if (curve.low) {
      const edge = (i, value) => point(i, good(value) ? value : curve.mean[i]);
      group.append(draw("path", { class: "band", d: pieces.map((piece) =>
        "M" + piece.map((i) => edge(i, curve.high[i])).join("L")
        + "L" + piece.toReversed().map((i) => edge(i, curve.low[i])).join("L") + "Z").join("") }));
    }
    // Where values have both signs, their average may have no place on a logarithmic axis.
    const smooth = smoothed(line)?.map((value, i) => good(value) ? value : curve.mean[i]);
    group.append(draw("path", { class: smooth ? "curve faint" : "curve", d: path(curve.mean) }));
    if (smooth) group.append(draw("path", { class: "curve", d: path(smooth) }));
    const few = last - first < 60;
    for (const piece of pieces) {
      if (few || piece.length === 1) piece.forEach((i) => group.append(
        draw("circle", { class: "point", r: few ? 2.2 : 1.6, cx: px(x[i]), cy: py((smooth ?? curve.mean)[i]) })));
    }
    let before = -Infinity;
    for (const i of curve.bad) {
      if (x[i] < from || x[i] > to || px(x[i]) - before < 7) continue;
      before = px(x[i]);
      group.append(draw("text", { class: "bad", x: before, y: frame.bottom - 2 },
        draw("title", {}, `${line.name}: not finite at ${kimg(x[i])}`), "×"));
    }
    return group;
  }

  move(event) {
    if (!this.frame) return;
    const place = event.clientX - this.svg.getBoundingClientRect().left;
    if (this.dragged != null) return this.drag(place);
    const [from, to] = range();
    this.hover(from + ((place - this.frame.left) / (this.frame.right - this.frame.left)) * (to - from));
  }

  leave() {
    if (this.dragged == null) this.hover(null);
  }

  press(event) {
    if (event.button !== 0 || event.pointerType === "touch") return;
    this.dragged = event.clientX - this.svg.getBoundingClientRect().left;
    this.svg.setPointerCapture(event.pointerId);
  }

  drag(place) {
    const { frame } = this, [left, right] = [this.dragged, place].sort((a, b) => a - b);
    this.tip.hidden = true;
    this.over.replaceChildren(draw("rect", { class: "drag", x: Math.max(left, frame.left), y: frame.top,
      width: Math.max(0, Math.min(right, frame.right) - Math.max(left, frame.left)), height: frame.bottom - frame.top }));
  }

  release(event) {
    if (this.dragged == null) return;
    const place = event.clientX - this.svg.getBoundingClientRect().left, { frame } = this, [from, to] = range();
    const [left, right] = [this.dragged, place].sort((a, b) => a - b);
    this.dragged = null;
    if (right - left < 6) return this.move(event);
    const back = (value) => from + ((Math.min(Math.max(value, frame.left), frame.right) - frame.left)
      / (frame.right - frame.left)) * (to - from);
    zoom(back(left), back(right));
  }

  type(event) {
    const [from, to] = range();
    const xs = [...new Set(this.shown().flatMap((line) => line.x))].filter((x) => x >= from && x <= to).sort((a, b) => a - b);
    if (!xs.length) return;
    const now = this.at == null ? null : nearest(xs, this.at);
    const stride = event.shiftKey ? 10 : 1;
    const places = {
      ArrowRight: now == null ? 0 : now + stride, ArrowLeft: now == null ? xs.length - 1 : now - stride,
      Home: 0, End: xs.length - 1,
    };
    if (event.key in places) this.hover(xs[Math.min(xs.length - 1, Math.max(0, places[event.key]))]);
    else if (event.key === "+" || event.key === "-") {
      const middle = this.at ?? (from + to) / 2, factor = event.key === "+" ? 0.5 : 2;
      zoom(middle - (middle - from) * factor, middle + (to - middle) * factor);
      this.hover(middle);
    } else if (event.key === "0") zoom(null, null);
    else if (event.key === "Escape") this.hover(null);
    else return;
    event.preventDefault();
  }

  hover(x) {
    this.at = x;
    charts.forEach((chart) => chart.cursor(x, chart === this));
  }

  cursor(x, own) {
    if (!this.over) return;
    const [from, to] = range(), { frame, px, py, good } = this;
    this.over.replaceChildren();
    this.tip.hidden = true;
    const lines = this.shown().filter((line) => line.x.length);
    if (x == null || !lines.length) return;
    if (!own) {
      if (x >= from && x <= to) this.over.append(
        draw("line", { class: "cursor", x1: px(x), x2: px(x), y1: frame.top, y2: frame.bottom }));
      return;
    }
    // A run that ended before this place, or a number that began after it, has nothing to say here.
    const reach = (to - from) / 40;
    const found = lines.map((line) => ({ line, i: nearest(line.x, x) })).filter(({ line, i }) =>
      Math.abs(line.x[i] - x) < reach || (line.x[0] < x && x < line.x[line.x.length - 1]));
    if (!found.length) return;
    const closest = found.reduce((best, each) =>
      Math.abs(each.line.x[each.i] - x) < Math.abs(best - x) ? each.line.x[each.i] : best, found[0].line.x[found[0].i]);
    this.over.append(draw("line", { class: "cursor", x1: px(closest), x2: px(closest), y1: frame.top, y2: frame.bottom }));
    const body = found.map(({ line, i }) => {
      const { mean, low, high, bad } = line.curve, smooth = smoothed(line);
      if (good((smooth ?? mean)[i])) this.over.append(
        draw("circle", { class: `ring ${color(line.color)}`, r: 3.5, cx: px(line.x[i]), cy: py((smooth ?? mean)[i]) }));
      const cells = [make("td", {}, make("i", { class: color(line.color) }), make("span", {}, line.name)),
        make("td", { class: "value" }, tell(mean[i], 5))];
      if (smooth) cells.push(make("td", { class: "range" }, `~ ${tell(smooth[i])}`));
      if (low && low[i] !== high[i]) cells.push(make("td", { class: "range" }, `${tell(low[i])} to ${tell(high[i])}`));
      if (bad.includes(i) && mean[i] != null) cells.push(make("td", { class: "range" }, "× not all finite"));
      if (line.x[i] !== closest) cells.push(make("td", { class: "range" }, `at ${kimg(line.x[i])}`));
      return make("tr", { class: color(line.color) }, cells);
    });
    this.tip.replaceChildren(make("b", {}, kimg(closest)), make("table", {}, make("tbody", {}, body)));
    this.tip.hidden = false;
    const width = this.tip.offsetWidth, all = this.svg.clientWidth, place = px(closest);
    this.tip.style.left = `${Math.max(0, place + 14 + width < all ? place + 14 : place - width - 14)}px`;
  }
}

function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low > 0 && x - xs[low - 1] < xs[low] - x ? low - 1 : low;
}

const smoothedOf = new WeakMap();
// A moving average in which what lies further back along the axis counts for less, so that rare numbers, as scores, are hardly
// averaged where frequent ones are much.
function smoothed({ x, curve, run }) {
  if (!view.smoothing) return null;
  const known = smoothedOf.get(curve);
  if (known?.smoothing === view.smoothing) return known.result;
  let sum = 0, weight = 0, before = x[0];
  const result = curve.mean.map((value, i) => {
    if (value == null) return null;
    const kept = view.smoothing ** ((x[i] - before) / spacing(run));
    before = x[i];
    sum = sum * kept + value;
    weight = weight * kept + 1;
    return sum / weight;
  });
  smoothedOf.set(curve, { smoothing: view.smoothing, result });
  return result;
}

// Between two points of the run's densest curve.
function spacing(run) {
  return Math.min(...report.runs[run].axes.map((x) => x.length > 1 ? (x[x.length - 1] - x[0]) / (x.length - 1) : Infinity)) || 1;
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = [1, 2, 2.5, 5, 10].map((each) => each * power).find((each) => each >= rough) ?? 10 * power;
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function logTicks(bottom, top) {
  if (top - bottom < 0.7) return ticks(10 ** bottom, 10 ** top, 5);
  const stride = Math.ceil((top - bottom) / 6), found = [];
  for (let power = Math.floor(bottom); power <= top; power++) {
    if (power % stride) continue;
    for (const factor of top - bottom < 2.2 ? [1, 2, 5] : [1]) {
      const value = Number(`${factor}e${power}`);
      if (Math.log10(value) >= bottom && Math.log10(value) <= top) found.push(value);
    }
  }
  return found;
}

function restartMarks(lines, from, to) {
  const runs = [...new Set(lines.map((line) => line.run))];
  return runs.flatMap((run) => report.runs[run].restarts
    .map((x, i) => ({ x, run, number: i + 1 })).filter(({ x }) => x >= from && x <= to));
}

const whole = (() => {
  const all = report.runs.flatMap((run) => run.axes.flatMap((axis) => [axis[0], axis[axis.length - 1]]));
  return [Math.min(...all), Math.max(...all)];
})();

function range() {
  return [view.from ?? whole[0], view.to ?? whole[1]];
}

function zoom(from, to) {
  if (from != null) {
    [from, to] = [Math.max(whole[0], from), Math.min(whole[1], to)];
    if (to - from < 1) return;
    if (from <= whole[0] && to >= whole[1]) from = to = null;
  }
  Object.assign(view, { from, to });
  document.getElementById("whole").hidden = from == null;
  render();
}

function render() {
  charts.forEach((chart) => chart.render());
}

let waiting = false;
function renderSoon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; render(); });
}

function addCharts() {
  for (const { title, panels } of report.sections) {
    const grid = make("div", { class: "charts" });
    for (const panel of panels) {
      // Of several runs, a chart a number, in which each curve is a run; of one run, a chart for numbers that belong together.
      const groups = several ? panel.keys.map((key) => [key]) : [panel.keys];
      for (const keys of groups) {
        const lines = keys.flatMap((key, number) => report.runs.flatMap((run, index) => {
          const curve = run.series[key];
          return curve ? [{ key, run: index, curve, x: run.axes[curve.axis],
            name: several ? run.name : label(key), color: several ? index : number }] : [];
        }));
        const name = groups.length > 1 ? `${panel.title}: ${label(keys[0])}` : panel.title;
        grid.append(new Chart(name, panel.log, lines).figure);
      }
    }
    section(title, grid);
  }
}

// ---- The parts around the charts

function addHeader() {
  document.getElementById("title").textContent = report.runs.map((run) => run.name).join(" · ");
  if (several) report.runs.forEach((run, index) => document.getElementById("runs").append(make("button", {
    type: "button", class: `key ${color(index)}`, "aria-pressed": "true", title: run.path,
    onclick: (event) => {
      const shown = view.hidden.delete(index) || !view.hidden.add(index);
      event.currentTarget.setAttribute("aria-pressed", shown);
      render();
    },
  }, make("i"), make("span", {}, run.name))));
  const smoothing = document.getElementById("smoothing");
  smoothing.addEventListener("input", () => {
    view.smoothing = Number(smoothing.value);
    document.getElementById("smoothing-value").textContent = smoothing.value;
    renderSoon();
  });
  const scales = document.querySelectorAll("[data-scale]");
  scales.forEach((button) => button.addEventListener("click", () => {
    view.scale = button.dataset.scale;
    scales.forEach((each) => each.setAttribute("aria-pressed", each === button));
    charts.forEach((chart) => { chart.log = null; });
    render();
  }));
  document.getElementById("whole").addEventListener("click", () => zoom(null, null));
  const system = matchMedia("(prefers-color-scheme: dark)"), theme = document.getElementById("theme");
  const names = { auto: "as the system's", light: "light", dark: "dark" }, signs = { auto: "◐", light: "☀", dark: "☾" };
  let chosen = "auto";
  const apply = () => {
    document.documentElement.dataset.theme = chosen === "auto" ? (system.matches ? "dark" : "light") : chosen;
    theme.textContent = signs[chosen];
    for (const attribute of ["aria-label", "title"]) theme.setAttribute(attribute, `Colors: ${names[chosen]}`);
  };
  theme.addEventListener("click", () => {
    const order = Object.keys(names);
    chosen = order[(order.indexOf(chosen) + 1) % order.length];
    apply();
  });
  system.addEventListener("change", apply);
  apply();
  document.getElementById("footer").append(
    `Made ${report.made} by distgan ${report.version}. In a chart: drag to zoom, double click for the whole run; by keyboard `,
    ...["←", "→", "+", "−", "0"].flatMap((key) => [make("kbd", {}, key), " "]),
    ". A band spans the lowest and the highest of the rows that a point stands for; × marks values that are not finite, ↻ a restart.");
}

function addOverview() {
  const tile = (name, value, sub, ...more) => make("div", { class: "tile card" },
    make("span", {}, name), make("b", {}, value), sub ? make("span", { class: "sub" }, sub) : null, ...more);
  const runs = report.runs.map((run, index) => {
    const last = run.last, seen = last["progress/images_seen"];
    const tiles = [tile("Images seen", kimg(seen), run.total_images ? `of ${kimg(run.total_images)}` : "", run.total_images
      ? make("progress", { max: run.total_images, value: Math.min(seen, run.total_images), "aria-label": "Share of the run" }) : null)];
    const rate = last["throughput/images_per_second"];
    if (rate) tiles.push(tile("Images a second", tell(rate, 4), last["time/step_ms"] ? `${tell(last["time/step_ms"], 3)} ms a step` : ""));
    for (const [name, best] of Object.entries(bests(run))) tiles.push(tile(`Best ${label(`/${name}`)}`, tell(best.value), `at ${kimg(best.images_seen)}`));
    if ("loss/discriminator" in last) tiles.push(tile("Loss D, G", `${tell(last["loss/discriminator"], 3)}, ${tell(last["loss/generator"], 3)}`, "last row"));
    tiles.push(tile("Restarts", tell(last["progress/restarts"] ?? run.restarts.length)));
    const checkpoint = run.checkpoints[run.checkpoints.length - 1];
    if (checkpoint) tiles.push(tile("Last checkpoint", kimg(checkpoint.images_seen), ago(Date.now() / 1000 - checkpoint.written)));
    return [several ? make("h3", { class: color(index) }, make("span", { class: "swatch" }), make("span", { style: "color:var(--text)" }, run.name)) : null,
      run.diverged.length ? make("p", { class: "card warning" }, `The training diverged: see ${run.diverged.join(", ")}.`) : null,
      make("div", { class: "tiles" }, tiles)];
  });
  section("Overview", ...runs);
}

function bests(run) {
  const found = {};
  const protocols = new Set(run.evaluations.map((each) => each.protocol));
  for (const [name, lower] of Object.entries(report.lower_is_better)) {
    // Where a run was evaluated in several ways there is no one best.
    if (protocols.size !== 1) continue;
    for (const each of run.evaluations) {
      const value = each.scores[name];
      if (value != null && (!found[name] || (lower ? value < found[name].value : value > found[name].value)))
        found[name] = { value, images_seen: each.images_seen };
    }
  }
  return found;
}

function addSamples() {
  const runs = report.runs.map((run, index) => ({ ...run, index })).filter((run) => run.samples.length);
  if (!runs.length) return;
  const places = [...new Set(runs.flatMap((run) => run.samples.map((each) => each.kimg)))].sort((a, b) => a - b);
  const source = (number) => `data:image/jpeg;base64,${pictures[number]}`;
  const figures = [], grids = make("div", { class: "grids", ondblclick: () => grids.classList.toggle("zoomed") });
  const figure = (run, words, picture) => {
    const place = make("b"), image = make("img", { alt: "", src: picture });
    grids.append(make("figure", {}, make("figcaption", {},
      several ? make("span", { class: color(run.index) }, make("i", { class: "swatch" }), make("span", { style: "color:var(--text)" }, `${run.name} `)) : null, words, place), image));
    return { run, place, image };
  };
  for (const run of runs) {
    figures.push({ ...figure(run, "samples at "), shown: null });
    if (run.reals != null) figure(run, "real images", source(run.reals)).image.alt = `Real images of ${run.name}`;
  }
  const show = () => {
    const now = places[Number(slider.value)];
    const words = `${tell(now, 9)} kimg`;
    output.textContent = words;
    slider.setAttribute("aria-valuetext", words);
    for (const each of figures) {
      const sample = each.run.samples.findLast((candidate) => candidate.kimg <= now) ?? each.run.samples[0];
      if (sample === each.shown) continue;
      each.shown = sample;
      each.place.textContent = `${tell(sample.kimg, 9)} kimg`;
      each.image.src = source(sample.picture);
      each.image.alt = `Samples of ${each.run.name} at ${tell(sample.kimg, 9)} kimg`;
    }
  };
  const slider = make("input", { type: "range", id: "samples-slider", min: 0, max: places.length - 1, step: 1,
    value: places.length - 1, "aria-label": "Samples at", oninput: () => { stop(); show(); } });
  const output = make("output", { for: "samples-slider" });
  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "▶ Play"; };
  const play = make("button", { type: "button", onclick: () => {
    if (timer) return stop();
    if (Number(slider.value) === places.length - 1) slider.value = 0;
    play.textContent = "❚❚ Pause";
    show();
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      show();
      if (Number(slider.value) === places.length - 1) stop();
    }, Math.max(60, Math.min(500, 12000 / places.length)));
  } }, "▶ Play");
  show();
  section("Samples", make("div", { class: "samples card" },
    make("div", { class: "slide" }, play, slider, output), grids));
}

function table(heads, rows) {
  return make("table", { class: "list" }, make("thead", {}, make("tr", {}, heads)), make("tbody", {}, rows));
}

function head(words, number = false) {
  return make("th", { scope: "col", class: number ? "number" : null }, words);
}

function runCell(index) {
  return several ? make("th", { scope: "row", class: color(index) }, make("i", { class: "swatch" }), make("span", { style: "color:var(--text)" }, report.runs[index].name)) : null;
}

function addScores() {
  const all = report.runs.flatMap((run, index) => run.evaluations.map((each) => ({ ...each, run: index })));
  if (!all.length) return;
  const names = [...new Set(all.flatMap((each) => Object.keys(each.scores)))];
  const blocks = report.protocols.map((cards, number) => {
    const here = all.filter((each) => each.protocol === number);
    const rows = here.map((each) => make("tr", {}, runCell(each.run),
      make("td", { class: "number" }, kimg(each.images_seen)), names.map((name) => {
        const value = each.scores[name], lower = report.lower_is_better[name];
        const values = here.map((other) => other.scores[name]).filter((other) => other != null);
        const best = lower != null && value != null && value === (lower ? Math.min(...values) : Math.max(...values))
          && each === here.find((other) => other.scores[name] === value);
        return make("td", { class: `number${best ? " best" : ""}` }, name in each.scores ? tell(value, 5) : "", best ? " ★" : "");
      })));
    const shared = Object.entries(cards).map(([metric, card]) => make("div", {}, make("h3", {}, metric),
      make("dl", {}, Object.entries(card).flatMap(([key, value]) => [make("dt", {}, key), make("dd", { class: "mono" }, String(value))]))));
    return make("div", { class: "card", style: "margin-bottom:12px" },
      report.protocols.length > 1 ? make("div", { class: "tools" }, make("h3", {}, `Protocol ${protocolName(number)}`)) : null,
      make("div", { class: "scroll" }, table([several ? head("run") : null, head("images seen", true), ...names.map((name) => head(name, true))], rows)),
      make("details", {}, make("summary", {}, "How they were got"), shared));
  });
  section("Scores", report.protocols.length > 1
    ? make("p", { class: "note" }, "Scores of different protocols can't be compared, and have charts and tables of their own.") : null, ...blocks);
}

function protocolName(number) {
  return number < 26 ? String.fromCharCode(65 + number) : String(number + 1);
}

function addConfig() {
  const names = [...new Set(report.runs.flatMap((run) => Object.keys(run.config)))];
  const rows = names.map((name) => {
    const values = report.runs.map((run) => run.config[name]);
    const differs = several ? values.some((value) => value !== values[0]) : values[0] !== report.defaults[name];
    const row = make("tr", { class: several && differs ? "differs" : null }, make("th", { scope: "row", class: "mono" }, name),
      values.map((value) => make("td", { class: `mono${value === report.defaults[name] ? " plain" : ""}` },
        value === undefined ? "" : value === "" ? "" : String(value))));
    return { name, row, differs, words: `${name} ${values.join(" ")}`.toLowerCase() };
  });
  const search = make("input", { type: "search", placeholder: "Find a setting", "aria-label": "Find a setting", oninput: () => filter() });
  const only = make("input", { type: "checkbox", oninput: () => filter() });
  only.checked = rows.some((row) => row.differs);
  const none = make("p", { class: "note", style: "padding:0 12px" }, "Nothing to show.");
  const filter = () => {
    rows.forEach((each) => { each.row.hidden = (only.checked && !each.differs) || !each.words.includes(search.value.trim().toLowerCase()); });
    none.hidden = rows.some((each) => !each.row.hidden);
  };
  filter();
  section("Configuration", make("div", { class: "card" },
    make("div", { class: "tools" }, search, make("label", {}, only, several ? " only what differs between the runs" : " only what is not the default")),
    make("div", { class: "scroll" }, table([head("setting"), ...report.runs.map((run) => head(several ? run.name : "value"))], rows.map((each) => each.row)), none)));
}

function addCheckpoints() {
  const rows = report.runs.flatMap((run, index) => run.checkpoints.toReversed().map((each) => make("tr", {}, runCell(index),
    make("td", { class: "number" }, kimg(each.images_seen)), make("td", { class: "number" }, bytes(each.bytes)),
    make("td", {}, `${new Date(each.written * 1000).toLocaleString()} (${ago(Date.now() / 1000 - each.written)})`),
    make("td", { class: "best" }, each.best ? "★ best" : ""))));
  if (rows.length) section("Checkpoints", make("div", { class: "card scroll" },
    table([several ? head("run") : null, head("images seen", true), head("size", true), head("written"), head("")], rows)));
}

function addStarts() {
  const rows = report.runs.flatMap((run, index) => run.starts.map((start, number) => make("tr", {}, runCell(index),
    make("td", { class: "number" }, String(number + 1)), make("td", { style: "white-space:nowrap" }, String(start.time ?? "").replace("T", " ")),
    make("td", { class: "mono" }, (start.command ?? []).join(" ")),
    make("td", { class: "mono" }, Object.entries(start.versions ?? {}).map(([name, version]) => `${name} ${version}`).join(", ")),
    make("td", { class: "mono" }, String(start.git_revision ?? "").slice(0, 12)))));
  if (rows.length) section("Starts", make("div", { class: "card scroll" },
    table([several ? head("run") : null, head("start", true), head("time"), head("command"), head("versions"), head("revision")], rows)));
}

addHeader();
addOverview();
addSamples();
addCharts();
addScores();
addConfig();
addCheckpoints();
addStarts();
render();
new ResizeObserver(renderSoon).observe(document.getElementById("main"));
const watch = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
  document.querySelectorAll("nav a").forEach((link) => {
    if (link.hash === `#${entry.target.id}`) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  });
}), { rootMargin: "-14% 0px -80% 0px" });
document.querySelectorAll("main > section").forEach((each) => watch.observe(each));
document.documentElement.dataset.ready = "true";
