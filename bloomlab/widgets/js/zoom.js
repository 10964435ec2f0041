// HeadZoom: one head, from the whole text to single numbers; a matrix or lines between tokens.
const LINES = 96;

class Zoom {
  // A matrix that pans and zooms. onpick(query, key), onhover(query, key).
  constructor(shell, { size = 520, onpick, onhover, exact } = {}) {
    Object.assign(this, { shell, size, onpick, onhover, exact, k: 1, x: 0, y: 0, at: [-1, -1], numbers: null, room: 60 });
    this.canvas = make("canvas", { class: "bl-canvas" });
    this.marks = make("canvas", { class: "bl-canvas bl-over", tabindex: "0", role: "grid", "aria-label": "attention of one head, queries down and keys across" });
    this.el = make("div", { class: "bl-stage" }, this.canvas, this.marks);
    const at = (e) => { const b = this.marks.getBoundingClientRect(); return [e.clientX - b.left - this.room, e.clientY - b.top - this.room]; };
    this.marks.addEventListener("wheel", (e) => { e.preventDefault(); const [px, py] = at(e); this.zoom(e.deltaY < 0 ? 1.25 : 0.8, px, py); }, { passive: false });
    let from = null;
    this.marks.addEventListener("pointerdown", (e) => { this.marks.focus(); from = [...at(e), this.x, this.y, false]; this.marks.setPointerCapture(e.pointerId); });
    this.marks.addEventListener("pointermove", (e) => {
      const [px, py] = at(e);
      if (from && e.buttons) { if (Math.hypot(px - from[0], py - from[1]) > 4) from[4] = true; if (from[4]) { this.x = from[2] - (px - from[0]) / this.unit; this.y = from[3] - (py - from[1]) / this.unit; this.bound(); this.draw(); } } else this.move(this.cell(px, py));
    });
    this.marks.addEventListener("pointerup", (e) => { const cell = this.cell(...at(e)); if (from && !from[4] && cell[0] >= 0) this.pick(cell); from = null; });
    this.marks.addEventListener("pointerleave", () => this.move([-1, -1]));
    this.marks.addEventListener("dblclick", () => this.reset());
    this.marks.addEventListener("keydown", (e) => {
      if (e.ctrlKey || e.metaKey || e.altKey) return;
      const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[e.key];
      const grow = { "+": 1.4, "=": 1.4, "-": 1 / 1.4 }[e.key];
      if (step) { e.preventDefault(); e.stopPropagation(); const [q, k] = this.at[0] < 0 ? [0, 0] : this.at; this.move([Math.min(this.n - 1, Math.max(0, q + step[0])), Math.min(this.n - 1, Math.max(0, k + step[1]))]); this.follow(); this.shell.tell(this.told()); }
      else if (grow) { e.preventDefault(); this.zoom(grow, (this.at[1] + 0.5 - this.x) * this.unit, (this.at[0] + 0.5 - this.y) * this.unit); }
      else if (e.key === "0") this.reset();
      else if (e.key === "Enter" || e.key === " ") { e.preventDefault(); e.stopPropagation(); if (this.at[0] >= 0) this.pick(this.at); }
    });
  }

  set(bytes, tokens, { top = 1, signed = false, rows = tokens } = {}) {
    const n = tokens.length, same = this.n === n;
    Object.assign(this, { bytes, tokens, rows, n, top, signed, numbers: null, small: null });
    const pen = this.canvas.getContext("2d");
    pen.font = "11px system-ui, 'Noto Sans', sans-serif";
    this.room = Math.ceil(Math.min(96, Math.max(28, ...[...rows, ...tokens].slice(0, 2000).map((t) => pen.measureText(short(t, 13)).width)) + 10));
    if (!same) this.reset(false);
    this.recolor();
  }

  recolor(look = this.look) {
    if (look?.sink !== this.look?.sink) this.small = null;
    this.look = look;
    this.near = this.far = null;
    this.draw();
  }

  // What is drawn from: all cells, or blocks of them while there are fewer pixels than cells.
  source() {
    const words = () => table(this.shell.theme, { ...this.look, signed: this.signed }), factor = Math.ceil(this.n / this.size);
    if (factor > 1 && this.k < factor) {
      if (this.small?.factor !== factor) this.small = { factor, ...pooled(this.cells(), this.n, factor, this.signed ? 128 : 0) };
      return (this.far ??= { factor, image: painted(document.createElement("canvas"), this.small.bytes, this.small.n, this.small.n, words()) });
    }
    return (this.near ??= { factor: 1, image: painted(document.createElement("canvas"), this.cells(), this.n, this.n, words()) });
  }

  cells() {
    if (!this.look?.sink || this.signed) return this.bytes;
    const bytes = this.bytes.slice();
    for (let row = 1; row < this.n; row++) bytes[row * this.n] = 0;
    return bytes;
  }

  get unit() { return (this.size / this.n) * this.k; }
  reset(draw = true) { this.k = 1; this.x = this.y = 0; if (draw) this.draw(); }
  bound() { const most = this.n - this.n / this.k; this.x = Math.min(most, Math.max(0, this.x)); this.y = Math.min(most, Math.max(0, this.y)); }
  cell(px, py) { const q = Math.floor(this.y + py / this.unit), k = Math.floor(this.x + px / this.unit); return px < 0 || py < 0 || px >= this.size || py >= this.size || q >= this.n || k > q ? [-1, -1] : [q, k]; }

  zoom(by, px, py) {
    const cx = this.x + px / this.unit, cy = this.y + py / this.unit;
    this.k = Math.min(Math.max(1, (this.n * 56) / this.size), Math.max(1, this.k * by));
    this.x = cx - px / this.unit;
    this.y = cy - py / this.unit;
    this.bound();
    this.draw();
  }

  follow() {
    const span = this.n / this.k;
    if (this.at[1] < this.x) this.x = this.at[1]; else if (this.at[1] >= this.x + span) this.x = this.at[1] - span + 1;
    if (this.at[0] < this.y) this.y = this.at[0]; else if (this.at[0] >= this.y + span) this.y = this.at[0] - span + 1;
    this.bound();
    this.draw();
  }

  move(cell) { if (cell[0] === this.at[0] && cell[1] === this.at[1]) return; this.at = cell; this.overlay(); this.onhover?.(...cell); }
  pick(cell) { this.at = cell; this.overlay(); this.onpick?.(...cell); }

  value(q, k) {
    const near = this.numbers, i = near ? (q - near.row) * near.columns + (k - near.column) : -1;
    if (near && q >= near.row && q < near.row + near.rows && k >= near.column && k < near.column + near.columns) return number(near.values[i]);
    return `≈${number(valueOf(this.bytes[q * this.n + k], this.top, this.signed))}`;
  }

  told() { const [q, k] = this.at; return q < 0 ? "" : `${q} ${this.rows[q]} → ${k} ${this.tokens[k]}: ${this.value(q, k)}`; }

  draw() {
    if (!this.n) return;
    const { size } = this, context = fitted(this.canvas, size + this.room, size + this.room), span = this.n / this.k;
    context.imageSmoothingEnabled = false;
    const source = this.source();
    context.drawImage(source.image, this.x / source.factor, this.y / source.factor, span / source.factor, span / source.factor, this.room, this.room, size, size);
    context.fillStyle = inkOf(this.shell, "--bl-fg");
    context.font = "11px system-ui, 'Noto Sans', sans-serif";
    const first = [Math.floor(this.y), Math.floor(this.x)], count = Math.ceil(span) + 1;
    const every = Math.max(1, Math.ceil(12 / this.unit));
    for (let i = 0; i < count; i++) {
      const q = first[0] + i, k = first[1] + i, py = this.room + (q + 0.5 - this.y) * this.unit, px = this.room + (k + 0.5 - this.x) * this.unit;
      if (q < this.n && q % every === 0 && py > this.room && py < this.room + size) { context.textAlign = "right"; context.fillText(short(this.rows[q], 13), this.room - 5, py + 4); }
      if (k < this.n && k % every === 0 && px > this.room && px < this.room + size) { context.save(); context.translate(px + 4, this.room - 5); context.rotate(-Math.PI / 2); context.textAlign = "left"; context.fillText(short(this.tokens[k], 13), 0, 0); context.restore(); }
    }
    if (this.unit >= 46) this.print(context, first, count);
    if (this.k > 1.01) {
      const side = 88, left = this.room + size - side - 6, top = this.room + 6;
      context.globalAlpha = 0.92;
      context.drawImage(source.image, left, top, side, side);
      context.globalAlpha = 1;
      context.strokeStyle = inkOf(this.shell, "--bl-accent");
      context.strokeRect(left + (this.x / this.n) * side, top + (this.y / this.n) * side, side / this.k, side / this.k);
      context.strokeStyle = inkOf(this.shell, "--bl-rule");
      context.strokeRect(left, top, side, side);
    }
    context.strokeStyle = inkOf(this.shell, "--bl-rule");
    context.strokeRect(this.room - 0.5, this.room - 0.5, size + 1, size + 1);
    this.overlay();
  }

  print(context, first, count) {
    context.textAlign = "center";
    context.font = "10px system-ui, sans-serif";
    const words = table(this.shell.theme, { ...this.look, signed: this.signed });
    for (let q = first[0]; q < Math.min(this.n, first[0] + count); q++) for (let k = first[1]; k <= Math.min(q, first[1] + count); k++) {
      const word = words[this.bytes[q * this.n + k]], light = 0.3 * (word & 255) + 0.59 * ((word >> 8) & 255) + 0.11 * ((word >> 16) & 255) > 140;
      const px = this.room + (k + 0.5 - this.x) * this.unit, py = this.room + (q + 0.5 - this.y) * this.unit;
      if (px < this.room + 10 || py < this.room + 6 || px > this.room + this.size - 10 || py > this.room + this.size - 4) continue;
      context.fillStyle = light ? "#111" : "#fff";
      context.fillText(this.value(q, k), px, py + 4);
    }
    const block = { row: Math.max(0, first[0]), column: Math.max(0, first[1]), rows: Math.min(count, this.n - first[0]), columns: Math.min(count, this.n - first[1]) };
    const near = this.numbers;
    if (this.exact && !this.shell.facts.static && !(near && block.row >= near.row && block.column >= near.column && block.row + block.rows <= near.row + near.rows && block.column + block.columns <= near.column + near.columns)) {
      clearTimeout(this.waits);
      const bytes = this.bytes;
      this.waits = setTimeout(async () => { const values = await this.exact(block); if (values && bytes === this.bytes) { this.numbers = { ...block, values }; this.draw(); } }, 120);
    }
  }

  overlay() {
    if (!this.n) return;
    const context = fitted(this.marks, this.size + this.room, this.size + this.room), [q, k] = this.at, here = this.here ?? ((i) => i);
    const [query, key] = [this.shell.place.query, this.shell.place.key].map((i) => (i < 0 ? -1 : here(i)));
    const box = (a, b, color, width) => { if (a < 0 || b < 0) return; context.strokeStyle = color; context.lineWidth = width; const s = Math.max(3, this.unit); context.strokeRect(this.room + (b - this.x) * this.unit, this.room + (a - this.y) * this.unit, s, s); };
    context.save();
    context.beginPath();
    context.rect(this.room, this.room, this.size, this.size);
    context.clip();
    if (q >= 0) { context.fillStyle = inkOf(this.shell, "--bl-hover"); context.fillRect(this.room, this.room + (q - this.y) * this.unit, this.size, Math.max(1, this.unit)); context.fillRect(this.room + (k - this.x) * this.unit, this.room, Math.max(1, this.unit), this.size); }
    box(query, key, inkOf(this.shell, "--bl-accent"), 2);
    box(q, k, inkOf(this.shell, "--bl-fg"), 1.5);
    context.restore();
    if (q >= 0 && this.shell.tokenAt) this.shell.tokenAt(this.told());
  }
}

// Lines from queries (left) to keys (right) of a small text; width is the weight.
function bipartite(shell, zoom, threshold, edges) {
  const row = 17, n = zoom.n, width = 520, picture = svg("svg", { class: "bl-chart", width, height: n * row + 10, viewBox: `0 0 ${width} ${n * row + 10}`, role: "group", "aria-label": "attention as lines from queries to keys" });
  const pick = (i) => shell.wire.go({ query: i === shell.place.query ? -1 : i });
  const color = palette(shell.theme)[0], query = shell.place.query < n ? shell.place.query : -1;
  for (let q = 0; q < n; q++) {
    if (query >= 0 && q !== query) continue;
    const keys = Array.from({ length: q + 1 }, (_, k) => [k, valueOf(zoom.bytes[q * n + k], zoom.top)]).sort((a, b) => b[1] - a[1]).slice(0, edges);
    for (const [k, w] of keys) if (w >= threshold && !(zoom.look?.sink && k === 0 && q > 0)) picture.append(svg("line", { x1: 170, x2: 350, y1: q * row + 12, y2: k * row + 12, stroke: color, "stroke-width": 0.5 + (4 * w) / zoom.top, opacity: 0.15 + (0.85 * w) / zoom.top }, svg("title", {}, `${zoom.rows[q]} → ${zoom.tokens[k]}: ${number(w)}`)));
  }
  zoom.tokens.forEach((token, i) => {
    picture.append(svg("text", { x: 164, y: i * row + 16, "text-anchor": "end", class: i === query ? "bl-strong bl-pick" : "bl-pick", tabindex: 0, role: "button", "aria-label": `query ${i} ${token}`, onclick: () => pick(i), onkeydown: (e) => (e.key === "Enter" || e.key === " ") && (e.preventDefault(), pick(i)) }, short(token, 18)),
      svg("text", { x: 356, y: i * row + 16 }, short(token, 18)));
  });
  return picture;
}

function zoom(shell) {
  const { wire } = shell;
  const set = (name, then) => (value) => { wire.set(name, value); then(); };
  const view = new Zoom(shell, {
    onpick: (query, key) => { wire.go({ query, key }); row(query, key); },
    onhover: (query, key) => shell.hover({ query, key }),
    exact: async (block) => { const answer = await shell.ask({ op: "block", ...question(), ...block }, { channel: "exact" }); return answer && asFloats(answer.buffers[0]); },
  });
  const lines = make("div", { class: "bl-scroll", hidden: true }), name = make("span", { class: "bl-tag" });
  let kept = ""; // what the tag says of the chosen head
  const layer = make("input", { type: "number", class: "bl-number", min: "0", max: String(shell.facts.n_layer - 1), "aria-label": "layer" });
  const at = make("input", { type: "number", class: "bl-number", min: "0", max: String(shell.facts.n_head - 1), "aria-label": "head" });
  for (const [box, which] of [[layer, "layer"], [at, "head"]]) box.addEventListener("change", () => wire.go({ [which]: Math.min(+box.max, Math.max(0, Math.round(+box.value))), query: -1, key: -1 }));
  const mode = choice("show", MODES.slice(0, 5), wire.get("mode"), set("mode", load));
  const form = choice("as", [["matrix", "matrix"], ["lines", "lines"]], wire.get("form"), set("form", draw));
  const looks = () => ({ scale: wire.get("scale"), gamma: wire.get("gamma"), threshold: wire.get("threshold"), sink: wire.get("sink") });
  const restyle = () => (wire.get("form") === "lines" ? ((view.look = looks()), draw()) : view.bytes && view.recolor(looks()));
  shell.tools.append(make("label", { class: "bl-control" }, "L", layer), make("label", { class: "bl-control" }, "H", at), mode, form,
    slider("gamma", { min: 0.4, max: 2.5, step: 0.1, value: wire.get("gamma") }, set("gamma", restyle)),
    slider("threshold", { min: 0, max: 0.5, step: 0.005, value: wire.get("threshold") }, set("threshold", restyle)),
    slider("lines a token", { min: 1, max: 12, step: 1, value: wire.get("edges") }, set("edges", draw)),
    toggle("hide first token", wire.get("sink"), set("sink", restyle)),
    button("whole", "show the whole matrix (0)", () => view.reset()));
  shell.body.append(name, view.el, lines);
  shell.idle = "wheel or + − zooms · drag or arrows move · click keeps a cell · 0 shows all";
  shell.tokenAt = (text) => { shell.idle = text; if (!shell.status.classList.contains("bl-trouble")) shell.status.textContent = text; };

  const question = () => { const { layer: l, head: h, run } = shell.place; return { layer: l, head: h, run, mode: wire.get("mode") }; };

  async function load() {
    layer.value = String(shell.place.layer);
    at.value = String(shell.place.head);
    const answer = await shell.ask({ op: "head", ...question() }, { keep: true });
    if (!answer) return;
    const tokens = shell.facts.tokens, n = tokens.length;
    name.textContent = kept = `${head(shell.place.layer, shell.place.head)}${shell.facts.scale[shell.place.layer][shell.place.head] === 0 ? " · off" : ""} · slope ${number(answer.slope)} logits a token`;
    view.look = looks();
    fit();
    view.set(square(answer.buffers[0], n, answer.signed ? 128 : 0), tokens, answer);
    if (wire.get("form") === "lines") draw();
    prefetch();
  }

  // The neighbours of a chosen head come while nothing else is asked for.
  function prefetch() {
    const { layer: l, head: h } = shell.place, n = shell.facts.n_head;
    clearTimeout(shell.ahead);
    shell.ahead = setTimeout(async () => {
      if (wire.facts().static) return;
      for (const next of [(h + 1) % n, (h + n - 1) % n]) if (shell.facts.kept[l]?.includes(next) && shell.place.head === h && shell.root.isConnected) await wire.ask({ op: "head", ...question(), head: next }, { channel: "ahead", keep: true }).catch(() => null);
    }, 250);
  }

  async function row(query, key) {
    if (query < 0 || shell.facts.static) return; // a page has no kernel to ask for exact numbers
    const answer = await shell.ask({ op: "block", ...question(), row: query, column: 0, rows: 1, columns: query + 1 }, { channel: "exact" });
    if (!answer) return;
    const value = asFloats(answer.buffers[0])[key];
    shell.tell(`${view.rows[query]} → ${view.tokens[key]}: ${value}`);
    shell.idle = `${query} ${view.rows[query]} → ${key} ${view.tokens[key]}: ${value.toPrecision(6)} exactly`;
    shell.say("");
  }

  function fit() {
    view.size = Math.max(220, Math.min(shell.isFull ? Math.min(shell.body.clientHeight, shell.body.clientWidth) - view.room - 40 : 520, shell.body.clientWidth - view.room - 8));
  }

  function draw() {
    if (!view.n) return;
    fit();
    const asLines = wire.get("form") === "lines";
    view.el.hidden = asLines;
    lines.hidden = !asLines;
    if (!asLines) return view.draw();
    const text = view.n > LINES ? make("p", {}, `lines are for ${LINES} tokens at most, here are ${view.n}: use the matrix`) : view.signed ? make("p", {}, "lines show no differences: use the matrix") : bipartite(shell, view, Math.max(0.01, wire.get("threshold")), wire.get("edges"));
    lines.replaceChildren(text);
  }

  shell.onHover(({ layer: l, head: h, tile }) => {
    if (l === undefined || wire.get("form") === "lines") return;
    name.textContent = l < 0 || !tile ? kept : `${head(l, h)} · a preview: click for all tokens`;
    if (l < 0 || !tile || !view.n) return view.draw();
    const context = fitted(view.canvas, view.size + view.room, view.size + view.room);
    context.imageSmoothingEnabled = false;
    context.drawImage(tile.atlas, tile.x, tile.y, tile.n, tile.n, view.room, view.room, view.size, view.size);
  });
  let theme = "", seen = "";
  shell.draws.push(() => { if (theme !== shell.theme) { theme = shell.theme; view.near = view.far = null; } draw(); });
  shell.refresh = () => setTimeout(load, 100);
  shell.placed = () => { const now = JSON.stringify(question()); if (now !== seen) { seen = now; load(); } else draw(); };
  shell.steered = () => { mode.value(wire.get("mode")); form.value(wire.get("form")); load(); };
  load();
}
