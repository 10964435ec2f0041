// LensTable: what each layer would predict at each token, only for the columns in sight.
const COLUMN = 92;

function lens(shell) {
  const { wire } = shell;
  const scroller = make("div", { class: "bl-scroll", tabindex: "0", role: "grid", "aria-label": "prediction of each layer at each token" });
  const inner = make("div", { class: "bl-lens" }), trace = make("div", {});
  scroller.append(inner);
  const compare = toggle("mark what the edits change", wire.get("compare"), (v) => { wire.set("compare", v); load(); });
  shell.tools.append(compare);
  shell.body.append(scroller, trace);
  shell.idle = "click a cell: the ranks of its token through the layers";
  let columns = new Map(), other = new Map(), picked = null;

  function range() {
    const n = shell.facts.tokens.length;
    if (shell.facts.static) return [0, n]; // a page has all columns, as one answer
    const first = Math.max(0, Math.floor(scroller.scrollLeft / COLUMN) - 1);
    return [first, Math.min(n, first + Math.ceil((scroller.clientWidth || 800) / COLUMN) + 2)];
  }

  async function fetchSome(run, into) {
    const [first, stop] = range(), missing = [];
    for (let i = first; i < stop; i++) if (!into.has(i)) missing.push(i);
    if (!missing.length) return;
    const version = shell.facts.version, answer = await shell.ask({ op: "lens", positions: missing, run }, { channel: `lens ${run}` });
    if (!answer || version !== shell.facts.version) return;
    const probability = asFloats(answer.buffers[0]), L = answer.labels.length;
    missing.forEach((pos, i) => into.set(pos, Array.from({ length: L }, (_, l) => ({ label: answer.labels[l][i], id: answer.ids[l][i], p: probability[l * missing.length + i] }))));
  }

  async function load() {
    inner.style.width = `${shell.facts.tokens.length * COLUMN + 44}px`;
    await fetchSome(shell.place.run, columns);
    if (wire.get("compare")) await fetchSome("clean", other);
    show();
  }

  function show() {
    const [first, stop] = range(), at = ramp(shell.theme), L = shell.facts.n_layer, cells = [];
    for (let i = first; i < stop; i++) {
      const column = columns.get(i), before = wire.get("compare") ? other.get(i) : null;
      const name = make("div", { class: "bl-cell bl-headcell", style: `left:${i * COLUMN + 40}px;top:0`, dir: "auto", title: shell.facts.tokens[i] }, short(shell.facts.tokens[i], 11));
      cells.push(name);
      for (let l = 0; l < L; l++) {
        const one = column?.[L - 1 - l], layer = L - 1 - l;
        const cell = make("div", { class: "bl-cell", style: `left:${i * COLUMN + 40}px;top:${(l + 1) * 24}px`, dir: "auto", role: "gridcell", tabindex: "-1", "data-at": `${layer}.${i}` }, one ? short(one.label, 10) : "");
        if (one) {
          const color = at(one.p * 0.85);
          cell.style.background = css(color);
          cell.style.color = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] > 140 ? "#111" : "#fff";
          cell.title = `after layer ${layer}, at ${shell.facts.tokens[i]}: ${one.label} ${number(one.p)}`;
          cell.classList.toggle("bl-changed", Boolean(before && before[layer].id !== one.id));
          cell.classList.toggle("bl-chosen", picked === `${layer}.${i}`);
          cell.onclick = () => pick(layer, i, one);
        }
        cells.push(cell);
      }
    }
    const names = Array.from({ length: L }, (_, l) => make("div", { class: "bl-rowname", style: `top:${(L - l) * 24}px` }, `L${l}`));
    inner.style.height = `${(L + 1) * 24}px`;
    inner.replaceChildren(...cells, ...names);
    names.forEach((el) => { el.style.left = `${scroller.scrollLeft}px`; });
  }

  async function pick(layer, pos, one) {
    picked = `${layer}.${pos}`;
    shell.tell(`after layer ${layer}, at ${shell.facts.tokens[pos]}: ${one.label}, probability ${number(one.p)}`);
    show();
    wire.go({ layer, query: pos });
    const last = columns.get(pos).at(-1), answer = await shell.ask({ op: "ranks", position: pos, ids: [...new Set([one.id, last.id])], run: shell.place.run });
    if (!answer) return;
    const ranks = asFloats(answer.buffers[0]), n = answer.labels.length, colors = palette(shell.theme), L = shell.facts.n_layer;
    const lines = answer.labels.map((name, i) => ({ name, color: colors[i], x: Array.from({ length: L }, (_, l) => l), y: Array.from({ length: L }, (_, l) => Math.log10(1 + ranks[l * n + i])), points: true }));
    trace.replaceChildren(legend(lines), chart({ label: "rank by layer", lines, xTitle: "layer", yTitle: "log₁₀(1 + rank); 0 = likeliest" }));
  }

  scroller.addEventListener("scroll", () => { show(); clearTimeout(shell.waits); shell.waits = setTimeout(load, 60); });
  scroller.addEventListener("keydown", (e) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [-1, 0], ArrowUp: [1, 0] }[e.key];
    const [l, i] = (picked ?? `${shell.facts.n_layer - 1}.0`).split(".").map(Number);
    if (step) { e.preventDefault(); e.stopPropagation(); const [a, b] = [Math.min(shell.facts.n_layer - 1, Math.max(0, l + step[0])), Math.min(shell.facts.tokens.length - 1, Math.max(0, i + step[1]))]; picked = `${a}.${b}`; const left = b * COLUMN; if (left < scroller.scrollLeft || left > scroller.scrollLeft + scroller.clientWidth - 140) scroller.scrollLeft = left - 60; const one = columns.get(b)?.[a]; show(); if (one) shell.tell(`after layer ${a}, at ${shell.facts.tokens[b]}: ${one.label} ${number(one.p)}`); }
    if (e.key === "Enter" && columns.get(i)) pick(l, i, columns.get(i)[l]);
  });
  shell.draws.push(show);
  let run = shell.place.run;
  shell.refresh = () => { columns = new Map(); other = new Map(); load(); };
  shell.placed = () => { if (run !== shell.place.run) { run = shell.place.run; shell.refresh(); } };
  shell.steered = load;
  load();
}
