"use strict";
// Draws what the data element holds. Strings from data only ever become text nodes and attribute values.
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const TIP = document.getElementById("tip"), SAID = document.getElementById("said");
  const ROWS = 60; // of a table, before all are asked for
  let ids = 0;

  // ---- elements

  function build(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "on") for (const [event, action] of Object.entries(value)) node.addEventListener(event, action);
      else if (name === "colour") node.style.setProperty("--c", `var(--${value})`);
      else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
    return node;
  }
  const h = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);
  const s = (tag, attributes, ...children) => build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  /** A value as the page shows it everywhere: in cells, on hover, on axes. */
  function show(value, kind = "float") {
    if (value === null || value === undefined) return "–";
    if (typeof value === "string") return value;
    if (typeof value === "boolean") return value ? "yes" : "no";
    if (kind === "int") return value.toLocaleString("en-US");
    const size = Math.abs(value);
    if (size >= 1e6 || (size > 0 && size < 5e-4)) return value.toExponential(1);
    return value.toFixed(size >= 100 ? 1 : 3);
  }
  const between = (low, high) => (low === null || low === undefined ? "" : ` [${show(low)}, ${show(high)}]`);

  /** A select with its label; null where there is nothing to choose. `change` gets the number of the choice. */
  function choose(label, options, change, chosen = 0) {
    const select = h("select", { "aria-label": label, on: { change: () => change(select.selectedIndex) } }, options.map((text, index) => h("option", { selected: index === chosen }, text)));
    const field = h("label", { hidden: options.length < 2 }, label, select);
    return { field, select };
  }

  // ---- the tip: what the pointer or the keyboard is on

  function tell(title, lines, x, y) {
    TIP.replaceChildren(h("b", {}, title), ...lines.map((line) => h("span", {}, line.colour ? h("i", { colour: line.colour }) : null, line.label, h("em", {}, line.value))));
    TIP.hidden = false;
    const left = Math.min(x + 14, innerWidth - TIP.offsetWidth - 8);
    const top = y + 16 + TIP.offsetHeight > innerHeight ? y - TIP.offsetHeight - 12 : y + 16;
    TIP.style.transform = `translate(${Math.max(8, left)}px, ${Math.max(8, top)}px)`;
  }
  const hush = () => { TIP.hidden = true; };

  /** Arrow keys walk over `count()` stops (in lines of `across()`), the pointer goes to `at(event)`; both call `go(i)`. */
  function walk(node, { count, across, at, go, leave }) {
    let here = -1;
    const to = (index, say) => { here = Math.max(0, Math.min(count() - 1, index)); go(here); if (say && !TIP.hidden) SAID.textContent = [...TIP.children].map((line) => line.innerText.replace(/\s+/g, " ")).join("; "); };
    const out = () => { hush(); leave(); };
    node.addEventListener("pointermove", (event) => { const index = at(event); if (index === null) out(); else to(index); });
    node.addEventListener("pointerleave", () => { if (document.activeElement !== node) out(); });
    node.addEventListener("focus", () => { if (node.matches(":focus-visible")) to(Math.max(0, here), true); });
    node.addEventListener("blur", out);
    node.addEventListener("keydown", (event) => {
      const line = across ? across() : 0;
      const steps = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: count() - 1, ArrowDown: line ? here + line : here + 1, ArrowUp: line ? here - line : here - 1 };
      if (event.key === "Escape") out();
      if (!(event.key in steps)) return;
      event.preventDefault();
      if (steps[event.key] >= 0 && steps[event.key] < count()) to(steps[event.key], true);
    });
  }

  /** Calls `draw(width)` now and whenever the node's width changes. */
  function fitted(node, draw) {
    let width = 0;
    new ResizeObserver(() => { if (node.clientWidth && node.clientWidth !== width) draw(width = node.clientWidth); }).observe(node);
    return () => { if (width) draw(width); };
  }

  /** Round steps on an axis from `low` to `high`. */
  function steps(low, high, most) {
    const raw = (high - low) / most || 1, power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw * 0.999);
    const found = [];
    for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step) found.push(Math.abs(value) < step / 1e6 ? 0 : value);
    return found.map((value) => [value, Number(value.toPrecision(6)).toString()]);
  }

  // ---- curves

  const SHAPES = { s: "M-1-1H1V1H-1Z", "^": "M0-1.3L1.2 1H-1.2Z", v: "M0 1.3L1.2-1H-1.2Z", D: "M0-1.4L1.4 0L0 1.4L-1.4 0Z", X: "M-1.2-.6L-.6-1.2L0-.6L.6-1.2L1.2-.6L.6 0L1.2 .6L.6 1.2L0 .6L-.6 1.2L-1.2 .6L-.6 0Z" };

  /** The marker of a curve at a place; a circle where `mark` names no other shape. */
  function sign(one, x, y, r, attributes) {
    const look = { class: one.open ? "dot open" : "dot", colour: one.colour, ...attributes };
    return SHAPES[one.mark] ? s("path", { ...look, d: SHAPES[one.mark], transform: `translate(${x} ${y}) scale(${r})` }) : s("circle", { ...look, r, cx: x, cy: y });
  }

  /** One panel of curves. `series` is a function: those that are shown. */
  function curves(panel, series) {
    const plot = s("svg", { class: "plot", tabindex: 0, role: "group", "aria-label": `${panel.title}: ${panel.y.label} by ${panel.x.label}. Left and right arrow keys read out values.` });
    const frame = h("div", { class: "panel" }, h("h3", {}, panel.title), h("p", { class: "sub" }, panel.subtitle), plot);
    const stops = [...new Map(Object.values(panel.series).flat().map((point) => [point[0], point[5]])).entries()].sort((a, b) => a[0] - b[0]);
    const [low, high] = panel.y.range, [first, last] = [panel.x.parts[0].from, panel.x.parts.at(-1).to];
    const margin = { left: 42, right: 10, top: panel.x.parts[0].label ? 20 : 8, bottom: 36 };
    let x, y, height, marks;
    const redraw = fitted(plot, (width) => {
      height = width < 420 ? 210 : 240;
      const inner = width - margin.left - margin.right, room = (last - first) * 0.02 + 0.5;
      x = (value) => margin.left + ((value - first + room) / (last - first + 2 * room)) * inner;
      y = (value) => margin.top + (1 - (Math.max(low, Math.min(high, value)) - low) / (high - low || 1)) * (height - margin.top - margin.bottom);
      plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
      plot.style.height = `${height}px`;
      const floor = height - margin.bottom, back = [], front = [];
      for (const part of panel.x.parts) {
        const [from, to] = [x(part.from - 0.5), x(part.to + 0.5)];
        if (part.label) back.push(s("rect", { class: "strip", x: from, y: margin.top, width: to - from, height: floor - margin.top }));
        const label = to - from < part.label.length * 5.2 ? part.label.split(" ")[0] : part.label;
        if (to - from > label.length * 3) back.push(s("text", { x: (from + to) / 2, y: margin.top - 7, "text-anchor": "middle" }, label));
      }
      for (const [value, label] of steps(low, high, 5)) {
        back.push(s("line", { class: "axis", x1: margin.left, x2: width - margin.right, y1: y(value), y2: y(value) }));
        back.push(s("text", { x: margin.left - 6, y: y(value) + 4, "text-anchor": "end" }, label));
      }
      let taken = -99;
      for (const [value, label] of panel.x.ticks) {
        const half = label.length * 3.1;
        if (x(value) - half < taken + 5 || (label.length > 5 && inner < 700)) continue;
        taken = x(value) + half;
        back.push(s("text", { x: x(value), y: floor + 14, "text-anchor": "middle" }, label));
      }
      back.push(s("text", { x: margin.left + inner / 2, y: height - 4, "text-anchor": "middle" }, panel.x.label));
      back.push(s("text", { x: 0, y: 0, transform: `translate(9 ${margin.top + (floor - margin.top) / 2}) rotate(-90)`, "text-anchor": "middle" }, panel.y.label));
      for (const one of series()) {
        if (one.key in panel.levels) {
          const level = y(panel.levels[one.key]);
          back.push(s("line", { class: "level", colour: one.colour, "stroke-dasharray": one.dash, x1: margin.left, x2: width - margin.right, y1: level, y2: level, "data-series": one.key }));
        }
        const points = panel.series[one.key] || [];
        for (const part of new Set(points.map((point) => point[4]))) {
          const run = points.filter((point) => point[4] === part), sure = run.filter((point) => point[2] !== null);
          const path = (list, value) => list.map((point) => `${x(point[0]).toFixed(1)},${y(value(point)).toFixed(1)}`).join(" ");
          if (sure.length > 1) back.push(s("polygon", { class: "band", colour: one.colour, points: `${path(sure, (p) => p[3])} ${path([...sure].reverse(), (p) => p[2])}` }));
          front.push(s("polyline", { class: "curve", colour: one.colour, "stroke-dasharray": one.dash, points: path(run, (p) => p[1]) }));
          if (one.mark || run.length === 1) for (const point of run) front.push(sign(one, x(point[0]), y(point[1]), 2.4, { "data-series": one.key, "data-site": point[5], "data-value": show(point[1]) }));
        }
      }
      if (panel.now !== undefined && panel.now !== null) front.push(s("line", { class: "now", x1: x(panel.now), x2: x(panel.now), y1: margin.top, y2: floor }));
      plot.replaceChildren(...back, ...front, (marks = s("g")));
    });
    walk(plot, {
      count: () => stops.length,
      at: (event) => {
        const place = event.clientX - plot.getBoundingClientRect().left;
        return stops.reduce((best, stop, index) => (Math.abs(x(stop[0]) - place) < Math.abs(x(stops[best][0]) - place) ? index : best), 0);
      },
      leave: () => marks && marks.replaceChildren(),
      go: (index) => {
        const [place, site] = stops[index], lines = [], rings = [];
        for (const one of series()) {
          const point = (panel.series[one.key] || []).find((candidate) => candidate[0] === place);
          if (point) { lines.push({ label: one.label, colour: one.colour, value: show(point[1]) + between(point[2], point[3]) }); rings.push(s("circle", { class: "ring", r: 4, cx: x(place), cy: y(point[1]) })); }
          else if (one.key in panel.levels) lines.push({ label: one.label, colour: one.colour, value: show(panel.levels[one.key]) });
        }
        marks.replaceChildren(s("line", { class: "cursor", x1: x(place), x2: x(place), y1: margin.top, y2: height - margin.bottom }), ...rings);
        const box = plot.getBoundingClientRect();
        tell(site, lines, box.left + x(place), box.top + height * 0.35);
      },
    });
    return { frame, redraw };
  }

  function swatch(one) {
    return s("svg", { viewBox: "0 0 22 10", "aria-hidden": "true" }, s("line", { class: "curve", colour: one.colour, "stroke-dasharray": one.dash, x1: 1, x2: 21, y1: 5, y2: 5 }), one.mark ? sign(one, 11, 5, 3) : null);
  }

  function curvesSection(section) {
    const off = new Set(section.series.filter((one) => one.off).map((one) => one.key));
    const panels = h("div", { class: "panels" });
    let drawn = [];
    const fill = (index) => {
      drawn = section.choices[index].panels.map((panel) => curves(panel, () => section.series.filter((one) => !off.has(one.key))));
      panels.replaceChildren(...drawn.map((one) => one.frame));
    };
    const keys = new Set(section.choices.flatMap((choice) => choice.panels.flatMap((panel) => [...Object.keys(panel.series), ...Object.keys(panel.levels)])));
    const legend = h("div", { class: "legend", role: "group", "aria-label": "Curves that are shown" }, section.series.filter((one) => keys.has(one.key)).map((one) => {
      const button = h("button", { type: "button", "aria-pressed": String(!off.has(one.key)), "data-series": one.key, on: { click: () => {
        if (!off.delete(one.key)) off.add(one.key);
        button.setAttribute("aria-pressed", String(!off.has(one.key)));
        drawn.forEach((panel) => panel.redraw());
      } } }, swatch(one), one.label);
      return button;
    }));
    fill(0);
    return [h("div", { class: "controls" }, choose(section.choose, section.choices.map((choice) => choice.label), fill).field), legend, panels];
  }

  // ---- colour scales

  /** The colour of a value, and null for none. */
  function colourOf(scale, value) {
    if (value === null || value === undefined) return null;
    const place = Math.max(0, Math.min(1, (value - scale.low) / (scale.high - scale.low))) * (scale.colours.length - 1);
    const index = Math.min(scale.colours.length - 2, Math.floor(place)), part = place - index;
    const [from, to] = [scale.colours[index], scale.colours[index + 1]].map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
    return `rgb(${from.map((one, channel) => Math.round(one + (to[channel] - one) * part)).join(", ")})`;
  }

  /** Whether a mark on the value's colour has to be white to be seen. */
  const strong = (scale, value) => Math.abs(value) > 0.6 * scale.high;

  /** The mark of a significant cell: a dot, or a minus where its effect is negative, for readers in grey. */
  function significant(scale, value, x, y, r) {
    const look = { class: strong(scale, value) ? "mark bright" : "mark" };
    return value < 0 ? s("rect", { ...look, x: x - 1.6 * r, y: y - 0.45 * r, width: 3.2 * r, height: 0.9 * r }) : s("circle", { ...look, r, cx: x, cy: y });
  }

  function scaleBar(scale, marks = []) {
    const id = `scale-${++ids}`, x = (value) => 10 + ((value - scale.low) / (scale.high - scale.low)) * 280;
    const ends = steps(scale.low, scale.high, 4);
    return s("svg", { class: "scale", viewBox: "0 0 300 58", role: "img", "aria-label": `${scale.label}, from ${scale.low} to ${scale.high}` },
      s("defs", {}, s("linearGradient", { id }, scale.colours.map((colour, index) => s("stop", { offset: index / (scale.colours.length - 1), "stop-color": colour })))),
      s("text", { x: 10, y: 10 }, scale.label), s("rect", { x: 10, y: 16, width: 280, height: 12, fill: `url(#${id})` }),
      ends.map(([value, label]) => s("text", { x: x(value), y: 42, "text-anchor": "middle" }, label)),
      marks.map(([value, label]) => [s("line", { class: "now", x1: x(value), x2: x(value), y1: 13, y2: 31 }), s("text", { x: x(value), y: 53, "text-anchor": x(value) < 30 ? "start" : "middle" }, label)]));
  }

  function effectLines(scale, cell) {
    const rest = [["p, adjusted", cell[3]], [scale.last || "value", cell[4]]].filter(([, value]) => value !== null && value !== undefined);
    return [{ label: scale.label, value: show(cell[0]) + between(cell[1], cell[2]) }, ...rest.map(([label, value]) => ({ label, value: show(value) }))];
  }

  // ---- heat maps

  function heatSection(section) {
    const plot = s("svg", { class: "plot", tabindex: 0, role: "group", "aria-label": `${section.title}. Arrow keys read out values.` });
    let choice = section.choices[0], cells = [], marks, side, left;
    const redraw = fitted(plot, (width) => {
      left = Math.min(width * 0.4, Math.max(...choice.lines.map((line) => line.length)) * 6.2 + 12);
      side = Math.min(30, (width - left - 6) / choice.columns.length);
      const line = Math.max(18, Math.min(side, 24)), height = line * choice.lines.length + 36, every = Math.ceil(20 / side);
      plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
      plot.style.height = `${height}px`;
      cells = choice.cells.flatMap((row, down) => row.map((cell, across) => ({ cell, down, across, x: left + across * side, y: down * line + 2, width: side, height: line })));
      plot.replaceChildren(
        ...choice.lines.map((text, index) => s("text", { x: left - 8, y: (index + 0.5) * line + 6, "text-anchor": "end" }, text)),
        ...choice.columns.filter((_, index) => index % every === 0).map((text, index) => s("text", { x: left + (index * every + 0.5) * side, y: height - 20, "text-anchor": "middle" }, text)),
        s("text", { x: left + (side * choice.columns.length) / 2, y: height - 4, "text-anchor": "middle" }, section.across),
        ...cells.flatMap((one) => {
          const box = s("rect", { class: "cell", x: one.x, y: one.y, width: one.width, height: one.height, "data-value": one.cell ? show(one.cell[0]) : "" });
          box.style.fill = (one.cell && colourOf(section.scale, one.cell[0])) || "var(--undefined)";
          const dot = one.cell && one.cell[3] !== null && one.cell[3] < 0.05 ? significant(section.scale, one.cell[0], one.x + one.width / 2, one.y + one.height / 2, 1.6) : null;
          return dot ? [box, dot] : [box];
        }), (marks = s("g")));
    });
    walk(plot, {
      count: () => cells.length,
      across: () => choice.columns.length,
      at: (event) => {
        const box = plot.getBoundingClientRect(), [x, y] = [event.clientX - box.left, event.clientY - box.top];
        const found = cells.findIndex((one) => x >= one.x && x < one.x + one.width && y >= one.y && y < one.y + one.height);
        return found < 0 ? null : found;
      },
      leave: () => marks && marks.replaceChildren(),
      go: (index) => {
        const one = cells[index], box = plot.getBoundingClientRect();
        marks.replaceChildren(s("rect", { class: "ring", x: one.x, y: one.y, width: one.width, height: one.height }));
        tell(`${choice.lines[one.down]}, layer ${choice.columns[one.across]}`, one.cell ? effectLines(section.scale, one.cell) : [{ label: "not run", value: "" }], box.left + one.x + one.width, box.top + one.y + one.height);
      },
    });
    const picker = choose(section.choose, section.choices.map((one) => one.label), (index) => { choice = section.choices[index]; redraw(); });
    return [h("div", { class: "controls" }, picker.field), plot, scaleBar(section.scale)];
  }

  // ---- maps over the picture

  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer());
  }

  /** The cells of an example under a choice as `(site, patch) -> {value, lines, strength, dot}`; null without any. */
  async function cellsOf(section, example, number, scale) {
    const patches = example.shape[0] * example.shape[1], choice = section.choices[number];
    if (example.values) return (site, patch) => {
      const cell = example.values[number][site][patch];
      if (!cell) return { value: null, lines: [{ label: "not run", value: "" }] };
      return { value: cell[0], lines: effectLines(scale, cell), strength: 0.15 + 0.85 * Math.min(1, Math.abs(cell[0] || 0) / scale.high), dot: cell[3] !== null && cell[3] < 0.05 };
    };
    if (!example.packed[number]) return null;
    if (choice.words) {
      const bytes = await unpack(example.packed[number]), all = patches * choice.sites.length, { words, k } = choice, strengths = 2 * all + 2 * all * k;
      return (site, patch) => {
        const at = site * patches + patch;
        const best = Array.from({ length: k }, (_, rank) => ({ word: words[bytes[2 * (all + at * k + rank)] + 256 * bytes[2 * (all + at * k + rank) + 1]], strength: bytes[strengths + at * k + rank] / 200 }));
        return { value: (bytes[at] + 256 * bytes[all + at]) / 1000, best, lines: best.map((one) => ({ label: one.word, value: show(one.strength) })) };
      };
    }
    const bytes = await unpack(example.packed[number]), classes = example.classes[number], all = patches * choice.sites.length;
    const wide = bytes.length > 3 * all, label = example.labels[choice.label];
    return (site, patch) => {
      const at = site * patches + patch, value = (bytes[at] + 256 * bytes[all + at]) / 1000;
      const predicted = classes[wide ? bytes[2 * (all + at)] + 256 * bytes[2 * (all + at) + 1] : bytes[2 * all + at]];
      return { value, predicted, right: predicted === label, lines: [{ label: `p(${label})`, value: show(value) }, { label: "predicted", value: predicted }] };
    };
  }

  const inside = (box, row, col, [rows, cols]) => { const [x, y] = [(col + 0.5) / cols, (row + 0.5) / rows]; return x >= box[0] && x < box[2] && y >= box[1] && y < box[3]; };

  function mapsSection(section) {
    if (!section.examples.length) return [h("p", { class: "caption" }, `All ${section.left_out} examples were left out to keep the page small.`)];
    const start = section.start || { choice: 0, site: 0 };
    let example = section.examples[0], number = start.choice, site = start.site, cellAt = null, asked = 0, rects = [], trace = null, failure = "", pointed = 0, wanted = [example, number];
    const map = s("svg", { tabindex: 0, role: "group", "aria-label": "Map over the patches. Arrow keys read out values." });
    const slider = h("input", { type: "range", min: 0, step: 1, "aria-label": "Layer", on: { input: () => { site = Number(slider.value); paint(); } } });
    const cover = h("input", { type: "range", min: 0, max: 100, value: 70, "aria-label": "Strength of the overlay", on: { input: () => paint() } });
    const output = h("output"), facts = h("dl"), picture = h("img", { alt: "The picture as the model sees it" }), film = h("div", { class: "film", "aria-hidden": "true" });
    const summary = h("p", { class: "caption", "aria-live": "polite" }), values = h("table", { class: "values" }), bar = h("div"), curve = h("div", { class: "wide" });
    const words = h("table", { class: "words" }), listed = h("div", { class: "wide", hidden: true }, h("h3", {}, "Words in every layer"), h("div", { class: "scroll" }, words));
    let marks = s("g");
    const scale = () => example.scale || section.scale; // a single pair has its own range
    const spot = (index) => [Math.floor(index / example.shape[1]), index % example.shape[1]];

    function focusBox() { return example.focus !== null && example.boxes[example.focus]; }

    /** Shows an example under a choice: all of it changes together, once its map is unpacked. */
    async function load(nextExample = example, nextNumber = number) {
      const mine = ++asked;
      wanted = [nextExample, nextNumber];
      let found = null, failed = "";
      try { found = await cellsOf(section, nextExample, nextNumber, nextExample.scale || section.scale); } catch (error) { failed = `This map could not be unpacked (${error.message}).`; }
      if (mine !== asked) return;
      [example, number, cellAt, failure] = [nextExample, nextNumber, found, failed];
      const [rows, cols] = example.shape, sites = section.choices[number].sites;
      site = Math.min(site, sites.length - 1);
      slider.max = sites.length - 1;
      slider.value = site;
      map.setAttribute("viewBox", `0 0 ${cols} ${rows}`);
      rects = Array.from({ length: rows * cols }, (_, index) => s("rect", { class: "patch", x: spot(index)[1], y: spot(index)[0], width: 1, height: 1, "data-row": spot(index)[0], "data-col": spot(index)[1] }));
      const boxes = Object.entries(example.boxes).sort((a, b) => (a[0] === example.focus) - (b[0] === example.focus)).flatMap(([name, box]) => (name === example.focus ? ["under", "box focus"] : ["box"]).map((kind) => s("rect", { class: kind, x: box[0] * cols, y: box[1] * rows, width: (box[2] - box[0]) * cols, height: (box[3] - box[1]) * rows })));
      map.replaceChildren(example.picture ? s("image", { class: "grey", href: example.picture, width: cols, height: rows, preserveAspectRatio: "none" }) : s("g"), ...rects, ...boxes, (marks = s("g", { class: "marks" })));
      picture.hidden = !example.picture;
      if (example.picture) picture.src = example.picture;
      const told = [["question", example.question], ["answer", example.answer], ...Object.entries(example.labels), ["boxes", Object.keys(example.boxes).join(", ")]];
      facts.replaceChildren(...told.filter((pair) => pair[1]).flatMap(([name, text]) => [h("dt", {}, name), h("dd", {}, text)]));
      const chance = section.choices[number].chance;
      bar.replaceChildren(scaleBar(scale(), typeof chance === "number" ? [[chance, "a guess"]] : []));
      const box = focusBox(), [height, width] = example.shape;
      pointed = box ? Math.min(height - 1, Math.floor(((box[1] + box[3]) / 2) * height)) * width + Math.min(width - 1, Math.floor(((box[0] + box[2]) / 2) * width)) : 0;
      drawFilm();
      drawTrace();
      paint();
      drawWords();
    }

    /** The best words of the patch that is pointed at, in every layer; those of the object stand out. */
    function drawWords() {
      const choice = section.choices[number];
      listed.hidden = !(choice.words && cellAt);
      if (listed.hidden) return;
      words.replaceChildren(h("caption", { class: "sub" }, `patch(${spot(pointed).join(",")}), best words first`), ...choice.sites.map((one, index) => h("tr", { class: index === site ? "on" : null }, h("th", { scope: "row" }, one.short), cellAt(index, pointed).best.map(({ word }) => h("td", { class: example.forms.includes(word.toLowerCase()) ? "own" : null }, word)))));
    }

    function drawFilm() {
      const [rows, cols] = example.shape, sites = section.choices[number].sites, ticks = new Map((section.choices[number].x || { ticks: [] }).ticks);
      const parts = (section.choices[number].x || { parts: [] }).parts;
      let last = null;
      film.replaceChildren(...(cellAt ? sites : []).flatMap((one, index) => {
        const canvas = h("canvas", { width: cols, height: rows }), context = canvas.getContext("2d");
        for (let patch = 0; patch < rows * cols; patch++) {
          context.fillStyle = colourOf(scale(), cellAt(index, patch).value) || "gray";
          context.fillRect(patch % cols, Math.floor(patch / cols), 1, 1);
        }
        const frame = h("figure", { "data-site": index, title: one.label, on: { click: () => { site = index; slider.value = index; paint(); } } }, canvas, one.short ?? ticks.get(one.x) ?? "");
        const heading = parts.length && one.part !== null && one.part !== last ? [h("p", {}, parts[one.part].label)] : [];
        last = one.part ?? last;
        return [...heading, frame];
      }));
    }

    /** Means inside and outside the focus box by site. */
    function drawTrace() {
      const box = focusBox(), choice = section.choices[number];
      trace = null;
      curve.replaceChildren();
      if (!cellAt || !choice.x || !box) return;
      const colours = { inside: "score", outside: "muted" }, series = { inside: [], outside: [] };
      choice.sites.forEach((one, index) => {
        if (one.x === null) return;
        const sums = { inside: [0, 0], outside: [0, 0] };
        rects.forEach((_, patch) => { const sum = sums[inside(box, ...spot(patch), example.shape) ? "inside" : "outside"]; sum[0] += cellAt(index, patch).value; sum[1] += 1; });
        for (const key of Object.keys(sums)) if (sums[key][1]) series[key].push([one.x, sums[key][0] / sums[key][1], null, null, one.part, one.site]);
      });
      const named = [...Object.keys(series).map((key) => ({ key, label: `mean over the patches ${key} the box`, colour: colours[key], mark: true })), { key: "chance", label: "a guess (1 / classes)", colour: "chance", dash: "6 4" }];
      const panel = { title: `This example: ${choice.label} inside and outside the box of ${example.focus}`, subtitle: "Blue: mean over the patches whose centre lies in the box. Grey: over all others. One example, so no interval.", x: choice.x, y: { label: section.choices[number].words ? "probability of its words" : "probability of its label", range: [0, 1] }, series, levels: choice.chance === null ? {} : { chance: choice.chance } };
      trace = { panel, ...curves(panel, () => named) };
      curve.replaceChildren(trace.frame);
    }

    function paint() {
      const choice = section.choices[number], one = choice.sites[site], [rows, cols] = example.shape;
      output.replaceChildren(one.label, " ", h("code", {}, one.site));
      slider.setAttribute("aria-valuetext", `${one.label}, ${one.site}`);
      for (const frame of film.querySelectorAll("figure")) frame.classList.toggle("on", Number(frame.dataset.site) === site);
      map.querySelectorAll(".mark").forEach((dot) => dot.remove());
      marks.replaceChildren();
      hush();
      if (!cellAt) { rects.forEach((rect) => { rect.style.opacity = 0; }); values.replaceChildren(); summary.textContent = failure || "This example has no label of this target."; return; }
      rects.forEach((rect, patch) => {
        const cell = cellAt(site, patch);
        rect.style.fill = colourOf(scale(), cell.value) || "var(--undefined)";
        rect.style.opacity = (cover.value / 100) * (cell.strength ?? 1);
        rect.dataset.value = show(cell.value);
        if (cell.dot) marks.before(significant(scale(), cell.value, spot(patch)[1] + 0.5, spot(patch)[0] + 0.5, Math.min(0.12, 0.03 + 0.0035 * cols)));
      });
      values.replaceChildren(h("caption", { class: "sub" }, "rows and columns of the patch grid"), ...Array.from({ length: rows }, (_, row) => h("tr", {}, Array.from({ length: cols }, (_, col) => h("td", {}, show(cellAt(site, row * cols + col).value))))));
      const box = focusBox(), all = rects.map((_, patch) => ({ ...cellAt(site, patch), within: box && inside(box, ...spot(patch), example.shape) }));
      const mean = (list) => show(list.reduce((sum, cell) => sum + cell.value, 0) / list.length), known = all.filter((cell) => cell.value !== null);
      const within = known.filter((cell) => cell.within), right = known.filter((cell) => cell.right).length;
      summary.textContent = `Mean over ${known.length} patches: ${known.length ? mean(known) : "–"}.` + (within.length ? ` Inside the box of ${example.focus} (${within.length} patches): ${mean(within)}.` : "") + (example.packed && !choice.words ? ` The predicted label is the example's own at ${right} of ${known.length}.` : "");
      if (trace && one.x !== null) { trace.panel.now = one.x; trace.redraw(); }
      words.querySelectorAll("tr").forEach((row, index) => row.classList.toggle("on", index === site));
    }

    walk(map, {
      count: () => rects.length,
      across: () => example.shape[1],
      at: (event) => {
        const box = map.getBoundingClientRect(), [rows, cols] = example.shape;
        const [row, col] = [Math.floor(((event.clientY - box.top) / box.height) * rows), Math.floor(((event.clientX - box.left) / box.width) * cols)];
        return row < 0 || col < 0 || row >= rows || col >= cols ? null : row * cols + col;
      },
      leave: () => marks.replaceChildren(),
      go: (index) => {
        if (!cellAt) return;
        const [row, col] = spot(index), box = rects[index].getBoundingClientRect();
        marks.replaceChildren(s("rect", { class: "ring", x: col, y: row, width: 1, height: 1 }));
        pointed = index;
        drawWords();
        tell(`patch(${row},${col})`, cellAt(site, index).lines, box.right, box.bottom);
      },
    });
    const which = choose("example", section.examples.map((one) => [one.name, one.question].filter(Boolean).join(": ").slice(0, 90)), (index) => load(section.examples[index], wanted[1]));
    const what = choose(section.choose, section.choices.map((one) => one.label), (index) => load(wanted[0], index), start.choice);
    load();
    return [
      h("div", { class: "controls" }, which.field, what.field),
      section.left_out ? h("p", { class: "caption left-out" }, `${section.examples.length} examples are shown; ${section.left_out} more are left out to keep the page small.`) : null,
      h("div", { class: "stage" },
        h("div", { class: "slide wide" }, h("label", { class: "field" }, "layer", slider), output),
        h("div", { class: "map" }, map, bar),
        h("div", {}, summary,
          h("div", { class: "side" }, picture, facts, h("label", { class: "field wide" }, "strength of the overlay", cover)),
          h("details", {}, h("summary", {}, "Values of this map as a table"), h("div", { class: "scroll" }, values))),
        listed, h("div", { class: "wide" }, h("h3", {}, "All layers"), film), curve),
    ];
  }

  // {{attention}}

  // ---- cost against retention, or against what token plans keep

  function scatterSection(section) {
    const plot = s("svg", { class: "plot", tabindex: 0, role: "group", "aria-label": `${section.title}. Arrow keys read out values.` });
    const note = h("p", { class: "caption" });
    let choice = section.choices[0], cost = section.costs[0], shown = [], marks;
    const redraw = fitted(plot, (width) => {
      const points = choice.points.filter((point) => point.x[cost.name] !== null), height = width < 500 ? 300 : 360;
      const ends = (list) => { const [low, high] = [Math.min(...list), Math.max(...list)], spare = 0.08 * (high - low || 1); return [low - spare, high + spare]; };
      const [left, right] = ends([...points.map((point) => point.x[cost.name]), 1]), [low, high] = ends([1, ...points.flatMap((point) => point.y.filter((one) => one !== null))]);
      const x = (value) => 48 + ((value - left) / (right - left)) * (width - 60), y = (value) => 8 + (1 - (value - low) / (high - low)) * (height - 50), floor = height - 42;
      plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
      plot.style.height = `${height}px`;
      shown = points.map((point) => ({ ...point, px: x(point.x[cost.name]), py: y(point.y[0]) }));
      const bar = (point) => [y(point.y[2] ?? point.y[0]), y(point.y[1] ?? point.y[0])], names = [];
      const taken = [[48, y(1) - 1, width - 12, y(1) + 1]].concat(shown.flatMap((point) => [[point.px - 5, point.py - 5, point.px + 5, point.py + 5], [point.px - 1, bar(point)[0], point.px + 1, bar(point)[1]]]));
      for (const point of shown) { // a label where it covers nothing; where there is no room the tip tells
        const size = point.label.length * 6.1, spots = [[8, 4, "start"], [-8, 4, "end"], [8, -8, "start"], [8, 16, "start"], [-8, -8, "end"], [-8, 16, "end"]];
        for (const [dx, dy, anchor] of spots) {
          const from = point.px + dx - (anchor === "end" ? size : 0), box = [from, point.py + dy - 10, from + size, point.py + dy + 2];
          if (box[0] < 48 || box[2] > width || taken.some((other) => box[0] < other[2] && box[2] > other[0] && box[1] < other[3] && box[3] > other[1])) continue;
          taken.push(box);
          names.push(s("text", { class: "name", x: point.px + dx, y: point.py + dy, "text-anchor": anchor }, point.label));
          break;
        }
      }
      plot.replaceChildren(
        ...steps(low, high, 6).flatMap(([value, label]) => [s("line", { class: "axis", x1: 48, x2: width - 12, y1: y(value), y2: y(value) }), s("text", { x: 42, y: y(value) + 4, "text-anchor": "end" }, label)]),
        ...steps(left, right, 6).map(([value, label]) => s("text", { x: x(value), y: floor + 16, "text-anchor": "middle" }, label)),
        s("text", { x: 48 + (width - 60) / 2, y: height - 6, "text-anchor": "middle" }, cost.label),
        s("text", { transform: `translate(10 ${height / 2 - 20}) rotate(-90)`, "text-anchor": "middle" }, section.y),
        s("line", { class: "level", colour: "chance", "stroke-dasharray": "6 4", x1: 48, x2: width - 12, y1: y(1), y2: y(1) }),
        ...shown.flatMap((point) => [s("line", { class: "bars", colour: point.colour, x1: point.px, x2: point.px, y1: bar(point)[1], y2: bar(point)[0] }), s("circle", { class: "dot", colour: point.colour, cx: point.px, cy: point.py, r: 5, "data-plan": point.label })]),
        ...names, (marks = s("g")));
      note.textContent = `Bars: ${choice.interval}. Dashed: as much as ${section.full}.`;
    });
    walk(plot, {
      count: () => shown.length,
      at: (event) => {
        const box = plot.getBoundingClientRect(), far = (point) => Math.hypot(point.px - event.clientX + box.left, point.py - event.clientY + box.top);
        const best = shown.reduce((found, point, index) => (found < 0 || far(point) < far(shown[found]) ? index : found), -1);
        return best >= 0 && far(shown[best]) < 30 ? best : null;
      },
      leave: () => marks && marks.replaceChildren(),
      go: (index) => {
        const point = shown[index], box = plot.getBoundingClientRect();
        marks.replaceChildren(s("circle", { class: "ring", cx: point.px, cy: point.py, r: 8 }));
        tell(point.label, [{ label: section.y, value: show(point.y[0]) + between(point.y[1], point.y[2]) }, { label: cost.label, value: show(point.x[cost.name]) }, { label: "n", value: show(point.n, "int") }], box.left + point.px, box.top + point.py);
      },
    });
    const scored = choose(section.choose, section.choices.map((one) => one.label), (index) => { choice = section.choices[index]; redraw(); });
    const costs = choose("cost", section.costs.map((one) => one.label), (index) => { cost = section.costs[index]; redraw(); });
    return [h("div", { class: "controls" }, scored.field, costs.field), plot, note];
  }

  // ---- tables

  function tableSection(section) {
    const text = new Intl.Collator("en", { numeric: true }), body = h("tbody"), count = h("p", { class: "count", role: "status" });
    const kinds = section.columns.map((column) => column.kind), rows = section.rows.map((row) => ({ row, text: row.map((value, at) => show(value, kinds[at])) }));
    let found = rows, sorted = -1, up = true, everything = false, printing = false;
    // Paper has no room for long texts that recur, such as the method of an interval: they become letters with a key.
    const coded = kinds.map((kind, at) => { const texts = kind === "text" ? [...new Set(rows.map((one) => one.text[at]))] : []; return texts.length && texts.length <= 12 && texts.some((text) => text.length > 24) ? new Map(texts.map((text, index) => [text, String.fromCharCode(97 + index)])) : null; });
    const letters = h("p", { class: "caption letters" }, coded.flatMap((texts, at) => (texts ? `${section.columns[at].name}: ${[...texts].map(([text, letter]) => `${letter} = ${text}`).join("; ")}. ` : [])));
    addEventListener("beforeprint", () => { printing = true; fill(); });
    addEventListener("afterprint", () => { printing = false; fill(); });
    const search = h("input", { type: "search", placeholder: "words in a row", on: { input: () => fill() } });
    const heads = section.columns.map((column, at) => h("th", { scope: "col", class: column.kind === "text" ? null : "number", "aria-sort": "none", "data-name": column.name.replaceAll("_", "_\u200b") }, h("button", { type: "button", on: { click: () => {
      up = sorted === at ? !up : true;
      sorted = at;
      heads.forEach((head, index) => head.setAttribute("aria-sort", index === at ? (up ? "ascending" : "descending") : "none"));
      fill();
    } } }, column.name)));
    function compare(a, b) {
      const [first, second] = [a.row[sorted], b.row[sorted]];
      if (first === null || second === null) return (first === null) - (second === null); // what is empty stays last
      const order = typeof first === "number" && typeof second === "number" ? first - second : text.compare(first, second);
      return up ? order : -order;
    }
    function fill() {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      found = rows.filter((one) => { const line = one.text.join(" ").toLowerCase(); return words.every((word) => line.includes(word)); });
      if (sorted >= 0) found = [...found].sort(compare);
      const shown = everything || printing ? found : found.slice(0, ROWS);
      body.replaceChildren(...shown.map((one) => h("tr", {}, one.text.map((value, at) => h("td", { class: kinds[at] !== "text" ? "number" : value.length <= 14 ? "brief" : null }, printing && coded[at] ? coded[at].get(value) : value)))));
      count.replaceChildren(`${shown.length.toLocaleString("en-US")} of ${rows.length.toLocaleString("en-US")} rows${found.length < rows.length ? ` (${found.length} match)` : ""}`, shown.length < found.length ? h("button", { type: "button", on: { click: () => { everything = true; fill(); } } }, "Show all") : "");
    }
    fill();
    const scroll = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": section.title }, h("table", {}, h("thead", {}, h("tr", {}, heads)), body));
    const same = section.same.length ? h("dl", { class: "facts same" }, section.same.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, Number.isInteger(value) ? String(value) : show(value))))) : null;
    if (section.short) return [same, letters, scroll];
    return [
      same,
      h("div", { class: "controls" }, h("label", {}, "filter", search)),
      letters, scroll, count, section.note ? h("p", { class: "caption" }, section.note) : null,
    ];
  }

  // ---- plans

  /** A row of boxes for each plan: filled where all weights train, striped for LoRA, dotted for LISA, empty where frozen. */
  function plansSection(section) {
    const id = `plans-${++ids}`;
    const plot = s("svg", { class: "plot", role: "img", "aria-label": section.plans.map((plan) => `${plan.label}: ${section.columns.filter((_, at) => plan.cells[at]).join(", ") || "nothing"} train`).join("; ") });
    const fill = (how, colour) => (how === "full" ? `var(--${colour})` : how ? `url(#${id}-${how}-${colour})` : "none");
    const pattern = (how, colour) => s("pattern", { id: `${id}-${how}-${colour}`, width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" }, how === "lisa" ? s("circle", { cx: 2.5, cy: 2.5, r: 1.2, class: "dot", colour }) : s("rect", { width: 2, height: 5, class: "dot", colour }));
    const box = (how, colour, place) => { const rect = s("rect", { class: how ? "trains" : "frozen", colour, "data-trains": how || "frozen", ...place }); rect.style.fill = fill(how, colour); return rect; };
    fitted(plot, (width) => {
      const left = Math.min(width * 0.35, Math.max(...section.plans.map((plan) => plan.label.length)) * 6.2 + 14), gap = 8, line = 22, top = 4;
      const side = (width - left - 2 * gap - 4) / section.columns.length, floor = top + line * section.plans.length, height = floor + 70;
      const x = (at) => left + at * side + (at >= section.blocks[0] ? gap : 0) + (at >= section.blocks[1] ? gap : 0);
      const inBlocks = (at) => at >= section.blocks[0] && at < section.blocks[1], every = Math.max(1, Math.ceil(18 / side));
      plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
      plot.style.height = `${height}px`;
      const used = [...new Set(section.plans.flatMap((plan) => plan.cells.filter((how) => how && how !== "full").map((how) => `${how} ${plan.colour}`)))];
      plot.replaceChildren(
        s("defs", {}, used.map((key) => pattern(...key.split(" ")))),
        ...section.plans.flatMap((plan, row) => [
          s("text", { class: "name", x: left - 8, y: top + row * line + 14, "text-anchor": "end" }, plan.label),
          ...plan.cells.map((how, at) => box(how, plan.colour, { x: x(at) + 0.5, y: top + row * line + 2, width: Math.max(1, side - 2), height: line - 6 })),
        ]),
        ...section.columns.map((name, at) => (!inBlocks(at)
          ? s("text", { transform: `translate(${x(at) + side / 2 + 3} ${floor + 10}) rotate(-55)`, "text-anchor": "end" }, name)
          : (at - section.blocks[0]) % every ? null : s("text", { x: x(at) + side / 2, y: floor + 14, "text-anchor": "middle" }, name))).filter(Boolean),
        s("text", { x: x(section.blocks[0]) + ((section.blocks[1] - section.blocks[0]) * side) / 2, y: floor + 32, "text-anchor": "middle" }, "block of the language model, from 0"));
    });
    const key = (how, label) => h("span", {}, s("svg", { viewBox: "0 0 22 10", "aria-hidden": "true" }, s("defs", {}, how && how !== "full" ? pattern(how, "muted") : []), box(how, "muted", { x: 1, y: 1, width: 20, height: 8 })), label);
    return [plot, h("p", { class: "keys" }, section.methods.map(([how, label]) => key(how, label)), key("", "frozen"))];
  }

  // ---- the page

  const SECTIONS = { curves: curvesSection, heat: heatSection, maps: mapsSection, attention: attentionSection, scatter: scatterSection, table: tableSection, plans: plansSection, text: () => [] };
  const main = document.getElementById("content"), nav = document.getElementById("runs");
  DATA.runs.forEach((run, index) => {
    nav.append(h("a", { href: `#run-${index}` }, run.name));
    main.append(h("article", { id: `run-${index}`, "aria-label": run.name },
      h("p", { class: "kicker" }, `${run.command} · ${run.name}`), h("h1", {}, run.title),
      run.sections.map((section) => h("section", { class: section.type + (section.short ? " short" : ""), "aria-label": section.title }, h("h2", {}, section.title), (section.lines || []).map((line) => h("p", { class: "line" }, line)), section.caption ? h("p", { class: "caption" }, section.caption) : null, SECTIONS[section.type](section))),
      h("section", { class: "about", "aria-label": "About this run" }, h("h2", {}, "About this run"),
        h("dl", { class: "facts" }, run.facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
        run.files.map(([name, text]) => h("details", { class: "manifest" }, h("summary", {}, name), h("pre", { tabindex: 0 }, text))))));
  });

  const theme = document.getElementById("theme"), dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const name = () => { theme.textContent = isDark() ? "Light" : "Dark"; theme.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`); };
  theme.addEventListener("click", () => { document.documentElement.dataset.theme = isDark() ? "light" : "dark"; name(); });
  dark.addEventListener("change", name);
  addEventListener("keydown", (event) => { if (event.key === "Escape") hush(); });
  addEventListener("scroll", hush, { passive: true });
  name();
})();
