  // ---- attention on the picture, beside the effect of cutting the same edges (page.py puts this into page.js)

  function attentionSection(section) {
    if (!section.examples.length) return [h("p", { class: "caption" }, `All ${section.left_out} pairs were left out to keep the page small.`)];
    const { layers, heads, windows, scale, weights } = section;
    let example = section.examples[0], flow = example.flows[0], place = flow.positions[0], layer = 0, head = 0, metric = 0, bytes = null, asked = 0, failure = "";
    const size = () => example.shape[0] * example.shape[1], spot = (index) => [Math.floor(index / example.shape[1]), index % example.shape[1]];
    const cutsPatch = (patch) => flow.patches === null || flow.patches.includes(patch);

    /** The weight that a head of a layer gives to a patch at a position; both steps are bytes, low ones first. */
    function weight(at, of, position, patch) {
      const index = ((at * heads.length + of) * example.positions.length + position) * size() + patch;
      return (bytes[index] + 256 * bytes[bytes.length / 2 + index]) / section.steps;
    }
    const summed = (at, of) => { let sum = 0; for (let patch = 0; patch < size(); patch++) if (cutsPatch(patch)) sum += weight(at, of, place, patch); return sum; };
    /** The cell of a layer and head, and of a single patch where those were cut one by one. */
    const cell = (at, of) => (flow.cells ? flow.cells[metric][at][of] : null);
    const ofPatch = (at, of, patch) => flow.by_patch[metric][at][of][patch];
    /** The effect that the map of layers and heads shows; of single patches the largest. */
    function effect(at, of) {
      if (flow.cells) return cell(at, of) && cell(at, of)[0];
      return flow.by_patch[metric][at][of].reduce((most, value) => (value !== null && (most === null || Math.abs(value) > Math.abs(most)) ? value : most), null);
    }

    const map = s("svg", { tabindex: 0, role: "group", "aria-label": "Attention over the patches. Arrow keys read out values." });
    const second = s("svg", { tabindex: 0, role: "group", "aria-label": "Effect of cutting the edge from each patch. Arrow keys read out values." });
    const slider = h("input", { type: "range", min: 0, max: layers.length - 1, step: 1, value: 0, "aria-label": "Layer", on: { input: () => { layer = Number(slider.value); paint(); } } });
    const output = h("output"), facts = h("dl", { class: "facts" }), told = h("dl", { class: "facts measured" }), bar = h("div"), beside = h("div", { class: "map beside" }, second, h("div", {}, scaleBar(scale)));
    const grids = [[s("svg", { class: "plot", tabindex: 0, role: "group", "aria-label": "Attention by layer and head. Arrow keys read out values, Enter chooses." }), (at, of) => summed(at, of), () => top(), "Attention to these patches, summed"],
      [s("svg", { class: "plot", tabindex: 0, role: "group", "aria-label": "Effect of the cut by layer and head. Arrow keys read out values, Enter chooses." }), effect, () => scale, ""]].map(([node, value, colours, title]) => ({ node, value, colours, title: h("h3", {}, title), bar: h("div"), cells: [], marks: s("g") }));
    let marks = s("g"), others = s("g"), rects = [], cuts = [];

    /** The range of the attention of all layers and heads, for the map of both. */
    function top() {
      let most = 0;
      layers.forEach((_, at) => heads.forEach((__, of) => { most = Math.max(most, summed(at, of)); }));
      return { ...weights, high: most || 1, label: "attention, summed" };
    }
    function own() {
      let most = 0;
      for (let patch = 0; patch < size(); patch++) most = Math.max(most, weight(layer, head, place, patch));
      return { ...weights, high: most || 1 };
    }

    const headed = choose("head", heads.map((text) => `head ${text}`), (index) => { head = index; paint(); });
    headed.field.hidden = false;
    const placed = h("select", { "aria-label": "text position", on: { change: () => { place = flow.positions[placed.selectedIndex]; fill(); paint(); } } });
    const flowed = h("select", { "aria-label": "edges", on: { change: () => { flow = example.flows[flowed.selectedIndex]; place = flow.positions[0]; menus(); fill(); paint(); } } });
    const measured = choose("metric", section.metrics, (index) => { metric = index; fill(); paint(); });
    const which = choose("pair", section.examples.map((one) => [one.name, one.question].filter(Boolean).join(": ").slice(0, 90)), (index) => load(section.examples[index]));

    function menus() {
      flowed.replaceChildren(...example.flows.map((one) => h("option", { selected: one === flow }, one.label)));
      placed.replaceChildren(...flow.positions.map((position) => h("option", { selected: position === place }, example.positions[position])));
    }

    async function load(next) {
      const mine = ++asked;
      let found = null, failed = "";
      try { found = await unpack(next.packed); } catch (error) { failed = `This attention could not be unpacked (${error.message}).`; }
      if (mine !== asked) return;
      const tokens = flow.tokens;
      [example, bytes, failure] = [next, found, failed];
      flow = example.flows.find((one) => one.tokens === tokens) || example.flows[0];
      place = flow.positions[0];
      facts.replaceChildren(...[["question", example.question], ["answer", example.answer]].filter((pair) => pair[1]).map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, text))));
      const [rows, cols] = example.shape, tile = (index) => ({ x: spot(index)[1], y: spot(index)[0], width: 1, height: 1, "data-row": spot(index)[0], "data-col": spot(index)[1] });
      rects = Array.from({ length: size() }, (_, index) => s("rect", { class: "patch", ...tile(index) }));
      cuts = Array.from({ length: size() }, (_, index) => s("rect", { class: "patch", ...tile(index) }));
      for (const [node, tiles, over] of [[map, rects, (marks = s("g"))], [second, cuts, (others = s("g"))]]) {
        node.setAttribute("viewBox", `0 0 ${cols} ${rows}`);
        node.replaceChildren(example.picture ? s("image", { class: "grey", href: example.picture, width: cols, height: rows, preserveAspectRatio: "none" }) : s("g"), ...tiles, over);
      }
      menus();
      fill();
      paint();
    }

    /** Draws the maps of layers and heads: attention, and effects. */
    function fill() {
      if (!bytes) {
        for (const grid of grids) {
          grid.cells = [];
          grid.redraw();
        }
        return;
      }
      grids[1].title.textContent = `${section.effect[0].toUpperCase()}${section.effect.slice(1)}${flow.cells ? "" : ", largest of a patch"}`;
      for (const grid of grids) {
        const range = grid.colours();
        grid.cells = heads.flatMap((_, of) => layers.map((__, at) => ({ at, of, value: grid.value(at, of) })));
        grid.bar.replaceChildren(scaleBar(range));
        grid.range = range;
        grid.redraw();
      }
    }
    for (const grid of grids) {
      let side = 1, line = 14, left = 24;
      grid.redraw = fitted(grid.node, (width) => {
        side = (width - left - 4) / layers.length;
        const every = Math.ceil(18 / side), height = line * heads.length + 34;
        grid.node.setAttribute("viewBox", `0 0 ${width} ${height}`);
        grid.node.style.height = `${height}px`;
        grid.node.replaceChildren(
          ...heads.map((text, of) => s("text", { x: left - 5, y: (of + 0.5) * line + 4, "text-anchor": "end" }, text)),
          ...layers.filter((_, at) => at % every === 0).map((text, index) => s("text", { x: left + (index * every + 0.5) * side, y: line * heads.length + 14, "text-anchor": "middle" }, text)),
          s("text", { x: left + (side * layers.length) / 2, y: line * heads.length + 29, "text-anchor": "middle" }, `${section.across}; heads down`),
          ...grid.cells.map(({ at, of, value }) => {
            const box = s("rect", { class: "cell", x: left + at * side, y: of * line, width: side, height: line, "data-layer": layers[at], "data-head": heads[of], "data-value": value === null ? "" : show(value) });
            box.style.fill = colourOf(grid.range, value) || "var(--undefined)";
            return box;
          }), (grid.chosen = s("rect", { class: "ring chosen", width: side, height: line })), (grid.marks = s("g")));
        grid.mark = () => { grid.chosen.setAttribute("x", left + layer * side); grid.chosen.setAttribute("y", head * line); };
        grid.mark();
      });
      const at = (event) => {
        const box = grid.node.getBoundingClientRect(), [col, row] = [Math.floor((event.clientX - box.left - left) / side), Math.floor((event.clientY - box.top) / line)];
        return col < 0 || row < 0 || col >= layers.length || row >= heads.length ? null : row * layers.length + col;
      };
      let here = null;
      const take = () => { if (here !== null) { [layer, head] = [grid.cells[here].at, grid.cells[here].of]; slider.value = layer; headed.select.selectedIndex = head; paint(); } };
      walk(grid.node, {
        count: () => grid.cells.length, across: () => layers.length, at, leave: () => { here = null; grid.marks.replaceChildren(); },
        go: (index) => {
          const one = grid.cells[here = index], box = grid.node.getBoundingClientRect();
          grid.marks.replaceChildren(s("rect", { class: "ring", x: left + one.at * side, y: one.of * line, width: side, height: line }));
          tell(`layer ${layers[one.at]}, head ${heads[one.of]}`, [{ label: "attention, summed", value: show(summed(one.at, one.of)) }, { label: section.effect, value: show(effect(one.at, one.of)) }], box.left + left + (one.at + 1) * side, box.top + (one.of + 1) * line);
        },
      });
      grid.node.addEventListener("click", (event) => { here = at(event) ?? here; take(); });
      grid.node.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); take(); } });
    }

    function paint() {
      const cut = windows[layer] === String(layers[layer]) ? `layer ${layers[layer]}` : `layers ${windows[layer]}`;
      output.replaceChildren(`layer ${layers[layer]}, head ${heads[head]}`);
      slider.setAttribute("aria-valuetext", `layer ${layers[layer]}`);
      hush();
      marks.replaceChildren();
      others.replaceChildren();
      beside.hidden = !flow.by_patch || !bytes;
      if (!bytes) { rects.forEach((rect) => { rect.style.opacity = 0; }); told.replaceChildren(h("div", {}, h("dt", {}, failure))); return; }
      const range = own();
      bar.replaceChildren(scaleBar(range));
      rects.forEach((rect, patch) => {
        const value = weight(layer, head, place, patch);
        rect.style.fill = colourOf(range, value);
        rect.style.opacity = cutsPatch(patch) ? 0.7 : 0.15;
        rect.dataset.value = value.toFixed(5);
      });
      if (flow.by_patch) cuts.forEach((rect, patch) => {
        const value = ofPatch(layer, head, patch);
        rect.style.fill = colourOf(scale, value) || "var(--undefined)";
        rect.style.opacity = value === null ? 0 : 0.75;
        rect.dataset.value = show(value);
      });
      grids.forEach((grid) => grid.mark && grid.mark());
      const found = cell(layer, head), mean = (section.means[flow.tokens] || [])[metric], all = mean && mean[layer][head];
      const lines = [["attention to these patches", show(summed(layer, head))], [`cut in ${cut}, this pair: ${section.effect}${flow.cells ? "" : ", largest of a patch"}`, show(effect(layer, head))]];
      if (found) lines.push([`${section.metrics[metric]} after the cut`, show(found[4])]);
      if (all) lines.push([`${section.effect}, ${section.n}`, show(all[0]) + between(all[1], all[2])]);
      told.replaceChildren(...lines.map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, text))));
    }

    for (const [node, over, lines] of [
      [map, () => marks, (patch) => [{ label: "attention", value: weight(layer, head, place, patch).toFixed(5) }, ...(cutsPatch(patch) ? [] : [{ label: "edge not cut", value: "" }])]],
      [second, () => others, (patch) => [{ label: section.effect, value: show(ofPatch(layer, head, patch)) }]],
    ]) walk(node, {
      count: () => size(), across: () => example.shape[1],
      at: (event) => {
        const box = node.getBoundingClientRect(), [rows, cols] = example.shape;
        const [row, col] = [Math.floor(((event.clientY - box.top) / box.height) * rows), Math.floor(((event.clientX - box.left) / box.width) * cols)];
        return row < 0 || col < 0 || row >= rows || col >= cols ? null : row * cols + col;
      },
      leave: () => over().replaceChildren(),
      go: (index) => {
        if (!bytes) return;
        const [row, col] = spot(index), box = (node === map ? rects : cuts)[index].getBoundingClientRect();
        over().replaceChildren(s("rect", { class: "ring", x: col, y: row, width: 1, height: 1 }));
        tell(`patch(${row},${col})`, lines(index), box.right, box.bottom);
      },
    });
    load(example);
    return [
      h("div", { class: "controls" }, which.field, h("label", {}, "edges", flowed), h("label", {}, "text position", placed), headed.field, measured.field),
      section.left_out ? h("p", { class: "caption left-out" }, `${section.examples.length} pairs are shown; ${section.left_out} more are left out to keep the page small.`) : null,
      h("div", { class: "stage" },
        h("div", { class: "slide wide" }, h("label", { class: "field" }, "layer", slider), output),
        h("div", { class: "map" }, map, bar),
        h("div", {}, told, facts, beside),
        h("div", { class: "wide panels" }, grids.map((grid) => h("div", { class: "panel" }, grid.title, grid.node, grid.bar)))),
    ];
  }
