// HeadGrid: every head at once, one canvas for thumbnails and one above it for marks.
const STATS = ["entropy", "distance", "sink", "previous", "duplicate", "induction"];
const FIELDS = [...STATS, "importance"];
const EDGE = 34;

function wanted(text) {
  const tests = [], parts = text.toLowerCase().match(/[a-z]+\s*[<>]\s*-?[\d.]+|(layer|head)\s*:\s*\d+(-\d+)?|l\d+(h\d+)?|\S+/g) ?? [];
  for (const part of parts) {
    const measure = part.match(/^([a-z]+)\s*([<>])\s*(-?[\d.]+)$/), range = part.match(/^(layer|head)\s*:\s*(\d+)(?:-(\d+))?$/), name = part.match(/^l(\d+)(?:h(\d+))?$/);
    if (measure && FIELDS.includes(measure[1])) tests.push((h) => (measure[2] === ">" ? h[measure[1]] > +measure[3] : h[measure[1]] < +measure[3]));
    else if (range) tests.push((h) => h[range[1]] >= +range[2] && h[range[1]] <= +(range[3] ?? range[2]));
    else if (name) tests.push((h) => h.layer === +name[1] && (name[2] === undefined || h.head === +name[2]));
    else return { error: `“${part}” is no filter: write previous > .5, sink > .8, entropy < 2, layer:3-7, head:0 or L2H7` };
  }
  return { test: (h) => tests.every((t) => t(h)) };
}

function grid(shell) {
  const { wire, facts } = shell, L = facts.n_layer, H = facts.n_head;
  const canvas = make("canvas", { class: "bl-canvas" });
  const marks = make("canvas", { class: "bl-canvas bl-over", tabindex: "0", role: "grid", "aria-label": `attention of ${L} layers by ${H} heads`, "aria-rowcount": String(L), "aria-colcount": String(H) });
  const stage = make("div", { class: "bl-stage" }, canvas, marks);
  const atlas = document.createElement("canvas");
  let data = null, heads = [], shown = [], cell = 24, cols = H, focus = 0, over = -1, block = null, asked = false;

  const filter = make("input", { type: "search", class: "bl-input", placeholder: "/ filter: sink > .8 layer:3-7", "aria-label": "filter heads" });
  filter.value = wire.get("filter");
  filter.addEventListener("input", () => { wire.set("filter", filter.value); arrange(); });
  const set = (name, then) => (value) => { wire.set(name, value); then(); };
  const mode = choice("show", MODES, wire.get("mode"), set("mode", load));
  const sort = choice("sort", [["place", "place"], ...FIELDS.map((f) => [f, f])], wire.get("sort"), set("sort", arrange));
  const look = choice("colours", [["lab", "lab"], ["heat", "heat"], ["grey", "grey"]], wire.get("scale"), set("scale", recolor));
  shell.tools.append(mode, sort, filter, look,
    slider("gamma", { min: 0.4, max: 2.5, step: 0.1, value: wire.get("gamma") }, set("gamma", recolor)),
    slider("threshold", { min: 0, max: 0.5, step: 0.005, value: wire.get("threshold") }, set("threshold", recolor)),
    toggle("hide first token", wire.get("sink"), set("sink", recolor)));
  shell.body.append(stage);
  shell.idle = "arrows move · Enter looks · m masks · drag or shift+arrows mark a block · / filters";

  async function load() {
    const kind = wire.get("mode"), sorted = wire.get("sort") === "importance" || /importance/.test(wire.get("filter"));
    const question = { op: "tiles", mode: kind === "importance" ? "pattern" : kind, size: cell * (devicePixelRatio || 1) > 56 ? 64 : 48, run: shell.place.run };
    const answer = await shell.ask(question, { keep: true });
    if (!answer || wire.get("mode") !== kind) return;
    const stats = asFloats(answer.buffers[2]);
    heads = Array.from({ length: L * H }, (_, i) => {
      const one = { i, layer: Math.floor(i / H), head: i % H, importance: NaN };
      STATS.forEach((name, s) => { one[name] = stats[i * STATS.length + s]; });
      return one;
    });
    if (kind === "importance" || sorted) {
      const found = await shell.ask({ op: "importance" }, { keep: true });
      if (!found || wire.get("mode") !== kind) return;
      asFloats(found.buffers[0]).forEach((v, i) => { heads[i].importance = v; });
    }
    data = { ...answer, kind };
    arrange();
  }

  function arrange() {
    if (!data) return;
    const by = wire.get("sort"), { test, error } = wanted(wire.get("filter") ?? "");
    if ((by === "importance" || /importance/.test(wire.get("filter"))) && heads.every((h) => Number.isNaN(h.importance))) return load();
    shell.say(error || data.trouble || "");
    for (const one of heads) one.fits = !test || test(one);
    shown = [...heads];
    if (by !== "place") shown = shown.filter((h) => h.fits).sort((a, b) => (Number.isNaN(b[by]) ? -1 : Number.isNaN(a[by]) ? 1 : by === "entropy" || by === "distance" ? a[by] - b[by] : b[by] - a[by]));
    focus = Math.min(focus, Math.max(0, shown.length - 1));
    recolor();
  }

  function recolor() {
    if (!data) return;
    const { n } = data, words = table(shell.theme, { scale: wire.get("scale"), gamma: wire.get("gamma"), threshold: wire.get("threshold"), signed: data.signed });
    const hide = wire.get("sink"), [tiles, sinkless] = data.buffers, ground = data.signed ? 128 : 0;
    if (atlas.width !== H * n || atlas.height !== L * n) { atlas.width = H * n; atlas.height = L * n; }
    const context = atlas.getContext("2d"), image = context.createImageData(H * n, L * n), pixels = new Uint32Array(image.data.buffer);
    const wide = H * n, blank = words[ground];
    pixels.fill(blank);
    for (let i = 0, at = 0; i < L * H; i++) {
      const base = Math.floor(i / H) * n * wide + (i % H) * n;
      for (let row = 0; row < n; row++) {
        const to = base + row * wide;
        for (let column = 0; column <= row; column++) pixels[to + column] = words[tiles[at++]];
        if (hide) pixels[to] = words[sinkless[i * n + row]];
      }
    }
    context.putImageData(image, 0, 0);
    shell.redraw();
  }

  function draw() {
    const width = Math.max(200, shell.body.clientWidth), sorted = wire.get("sort") !== "place";
    const full = shell.isFull ? shell.body.clientHeight : 640;
    cell = Math.max(14, Math.min(96, Math.floor((width - EDGE) / H) - 2, sorted ? 64 : Math.floor(Math.max(240, full - EDGE) / L) - 2));
    cols = sorted ? Math.max(1, Math.floor((width - EDGE) / (cell + 2))) : H;
    marks.dataset.cell = cell;
    const rows = Math.max(1, Math.ceil(shown.length / cols)), w = EDGE + cols * (cell + 2), h = EDGE / 2 + rows * (cell + 2);
    const context = fitted(canvas, w, h);
    context.imageSmoothingEnabled = data && cell * (devicePixelRatio || 1) < data.n; // else each weight is a crisp cell
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = inkOf(shell, "--bl-soft");
    context.textAlign = "center";
    if (!sorted) for (let i = 0; i < H; i++) if (cell > 20 || i % 2 === 0) context.fillText(`H${i}`, EDGE + i * (cell + 2) + cell / 2, 11);
    context.textAlign = "right";
    if (!sorted) for (let i = 0; i < L; i++) context.fillText(`L${i}`, EDGE - 5, EDGE / 2 + i * (cell + 2) + cell / 2 + 4);
    if (!data) return asked || ((asked = true), load());
    const { n } = data, most = Math.max(...heads.map((one) => one.importance || 0), 1e-9), at = ramp(shell.theme, wire.get("scale"));
    shown.forEach((one, k) => {
      const [x, y] = corner(k);
      context.globalAlpha = one.fits ? 1 : 0.15;
      if (data.kind === "importance") {
        const share = Math.sqrt(Math.max(0, one.importance) / most), color = at(share * 0.9);
        context.fillStyle = css(color);
        context.fillRect(x, y, cell, cell);
        if (cell > 30) {
          context.fillStyle = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] > 140 ? "#111" : "#fff";
          context.textAlign = "center";
          context.fillText(number(one.importance), x + cell / 2, y + cell / 2 + 4);
        }
      } else context.drawImage(atlas, one.head * n, one.layer * n, n, n, x, y, cell, cell);
      context.globalAlpha = 1;
    });
    overlay();
  }

  const corner = (k) => [EDGE + (k % cols) * (cell + 2), EDGE / 2 + Math.floor(k / cols) * (cell + 2)];

  function overlay() {
    const context = fitted(marks, parseFloat(canvas.style.width), parseFloat(canvas.style.height)), { scale, mean, slopes } = shell.facts;
    const line = inkOf(shell, "--bl-rule"), accent = inkOf(shell, "--bl-accent"), soft = inkOf(shell, "--bl-fg");
    context.font = "bold 11px system-ui, sans-serif";
    shown.forEach((one, k) => {
      const [x, y] = corner(k), factor = scale[one.layer][one.head], gone = !shell.facts.kept[one.layer]?.includes(one.head);
      context.strokeStyle = line;
      context.lineWidth = 1;
      context.strokeRect(x - 0.5, y - 0.5, cell + 1, cell + 1);
      if (factor !== 1 || mean[one.layer][one.head] || gone) {
        context.fillStyle = inkOf(shell, "--bl-bg");
        context.globalAlpha = 0.72;
        context.fillRect(x, y, cell, cell);
        context.globalAlpha = 1;
        context.fillStyle = soft;
        context.textAlign = "center";
        context.fillText(gone ? "–" : mean[one.layer][one.head] ? "mean" : factor === 0 ? "off" : `×${number(factor)}`, x + cell / 2, y + cell / 2 + 4);
      } else if (slopes[one.layer][one.head] !== 1) {
        context.fillStyle = accent;
        context.fillRect(x + cell - 6, y, 6, 6);
      }
      const chosen = one.layer === shell.place.layer && one.head === shell.place.head;
      const marked = block && k >= 0 && inside(k);
      if (chosen || k === over || marked || (k === focus && document.activeElement === marks)) {
        context.strokeStyle = chosen ? accent : soft;
        context.lineWidth = chosen ? 3 : 2;
        context.strokeRect(x - 1, y - 1, cell + 2, cell + 2);
      }
    });
  }

  const inside = (k) => { const [a, b] = block.map((i) => [i % cols, Math.floor(i / cols)]), [x, y] = [k % cols, Math.floor(k / cols)]; return x >= Math.min(a[0], b[0]) && x <= Math.max(a[0], b[0]) && y >= Math.min(a[1], b[1]) && y <= Math.max(a[1], b[1]); };

  function told(one) {
    const off = shell.facts.scale[one.layer][one.head];
    const measures = STATS.map((name) => `${name} ${number(one[name])}`).join(", ");
    return `${head(one.layer, one.head)}${off === 1 ? "" : off === 0 ? ", off" : `, ×${number(off)}`}: ${measures}${Number.isNaN(one.importance) ? "" : `, importance ${number(one.importance)} nats`}`;
  }

  function point(k) {
    over = k;
    overlay();
    const one = shown[k];
    shell.idle = one ? told(one) : "arrows move · Enter looks · m masks · drag marks a block · / filters";
    if (!shell.status.classList.contains("bl-trouble")) shell.status.textContent = shell.idle;
    shell.hover(one ? { layer: one.layer, head: one.head, tile: data.kind === "importance" ? null : { atlas, x: one.head * data.n, y: one.layer * data.n, n: data.n } } : { layer: -1 });
  }

  const under = (e) => { const box = marks.getBoundingClientRect(), x = Math.floor((e.clientX - box.left - EDGE) / (cell + 2)), y = Math.floor((e.clientY - box.top - EDGE / 2) / (cell + 2)); return x < 0 || y < 0 || x >= cols || y * cols + x >= shown.length ? -1 : y * cols + x; };
  const lock = (k) => { const one = shown[k]; if (one) { focus = k; wire.go({ layer: one.layer, head: one.head, query: -1, key: -1 }); shell.tell(told(one)); } };

  function mask() {
    const those = block ? shown.filter((_, k) => inside(k)) : [shown[focus]].filter(Boolean);
    if (!those.length) return;
    const on = those.some((one) => shell.facts.scale[one.layer][one.head] !== 0);
    shell.ask({ op: "edit", heads: those.map((one) => [one.layer, one.head]), scale: on ? 0 : 1 }, { write: true });
  }

  marks.addEventListener("pointermove", (e) => { const k = under(e); if (e.buttons && block && k >= 0) { block[1] = k; overlay(); } else if (k !== over) point(k); });
  marks.addEventListener("pointerleave", () => point(-1));
  marks.addEventListener("pointerdown", (e) => { const k = under(e); marks.focus(); block = k >= 0 && e.button === 0 ? [k, k] : null; });
  marks.addEventListener("pointerup", (e) => {
    const k = under(e);
    if (!block || k < 0) return;
    if (block[0] === block[1]) { block = null; lock(k); if (e.shiftKey) mask(); } else overlay();
  });
  marks.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: cols, ArrowUp: -cols, Home: -focus, End: shown.length - 1 - focus }[e.key];
    if (step !== undefined) { e.preventDefault(); e.stopPropagation(); const to = Math.min(shown.length - 1, Math.max(0, focus + step)); block = e.shiftKey ? [block?.[0] ?? focus, to] : null; focus = to; point(focus); shell.tell(told(shown[focus])); }
    else if (e.key === "Enter" || e.key === " ") { e.preventDefault(); e.stopPropagation(); lock(focus); }
    else if (e.key === "m") { e.stopPropagation(); mask(); }
    else if (e.key === "/") { e.preventDefault(); filter.focus(); }
  });
  marks.addEventListener("focus", overlay);
  marks.addEventListener("blur", overlay);

  shell.draws.push(draw);
  shell.refresh = () => setTimeout(load, 150); // what is asked for at once, the next token say, comes first
  let theme = "", run = shell.place.run;
  shell.draws.unshift(() => { if (theme !== shell.theme) { theme = shell.theme; recolor(); } });
  shell.placed = () => { if (run !== shell.place.run) { run = shell.place.run; load(); } focus = Math.max(0, shown.findIndex((one) => one.layer === shell.place.layer && one.head === shell.place.head)); overlay(); };
  shell.steered = () => { mode.value(wire.get("mode")); sort.value(wire.get("sort")); look.value(wire.get("scale")); filter.value = wire.get("filter"); load(); };
}
