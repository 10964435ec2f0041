// HeadMaskLab: heads off, scaled or averaged, and what the next token makes of it.
function mask(shell) {
  const { wire } = shell;
  const past = [];
  let shown = null, undoing = false, changing = 0;
  const board = make("div", { class: "bl-heads", role: "grid", "aria-label": "heads: Space switches, digits scale, a averages" });
  const cells = [];
  const result = make("div", { class: "bl-result" }), facts = make("div", { class: "bl-facts" });
  const off = make("input", { type: "text", class: "bl-input", placeholder: "L0H0 L1H4-7", "aria-label": "heads that are off" });
  const apply = () => { if (off.value.trim() !== (shell.facts.off ?? "")) change({ op: "mask", text: off.value }); };
  off.addEventListener("change", apply);
  off.addEventListener("keydown", (e) => e.key === "Enter" && apply());
  const limit = make("input", { type: "number", class: "bl-number", min: "0", step: "0.05", value: String(wire.get("limit")), "aria-label": "largest KL in nats" });
  limit.addEventListener("change", () => wire.set("limit", +limit.value));
  const scale = slider("scale of chosen", { min: 0, max: 2, step: 0.05, value: 1 }, (value) => { const heads = [[shell.place.layer, shell.place.head]]; clearTimeout(shell.waits); shell.waits = setTimeout(() => change({ op: "edit", heads, scale: value }), 150); });
  const preset = choice("preset", [["", "…"], ["layer", "off: this layer"], ["head", "off: this head number"], ["others", "off: all others of the layer"], ["invert", "swap on and off"]], "", (what) => { if (what) change({ op: "preset", what, layer: shell.place.layer, head: shell.place.head }); preset.value(""); });
  shell.tools.append(make("label", { class: "bl-control" }, "off", off), scale,
    button("mean", "the chosen head writes its mean (a)", () => change({ op: "edit", heads: [[shell.place.layer, shell.place.head]], scale: 1, mean: !shell.facts.mean[shell.place.layer][shell.place.head] })),
    preset, button("undo", "take the last change back (u)", undo), button("all on", "no edits", () => change({ op: "mask", text: "" })),
    make("label", { class: "bl-control" }, "KL ≤", limit), button("prune greedily", "switch off heads while the prediction stays within this KL (nats)", () => change({ op: "prune", limit: +limit.value })));
  shell.body.append(make("div", { class: "bl-split" }, board, result), facts);
  shell.idle = "click or Space switches a head · 0–9 scale it by tenths · a: mean · u: undo";

  async function change(question) {
    shell.began = performance.now();
    changing++;
    const answer = await shell.ask(question, { write: true });
    changing--;
    if (answer?.labels) paint(answer); // the next token comes with the change
    else load();
  }

  function undo() {
    const last = past.pop();
    if (last) { undoing = true; change({ op: "restore", scale: last[0], mean: last[1] }); }
  }

  const flip = (l, h) => change({ op: "edit", heads: [[l, h]], scale: shell.facts.scale[l][h] === 0 ? 1 : 0 });

  function build() {
    const { n_layer: L, n_head: H } = shell.facts;
    board.style.gridTemplateColumns = `3em repeat(${H}, minmax(14px, 30px))`;
    board.replaceChildren();
    board.append(make("span", {}), ...Array.from({ length: H }, (_, h) => make("span", { class: "bl-soft" }, H > 20 && h % 2 ? "" : String(h))));
    for (let l = 0; l < L; l++) {
      board.append(make("span", { class: "bl-soft" }, `L${l}`));
      for (let h = 0; h < H; h++) {
        const one = make("button", { type: "button", class: "bl-head", role: "gridcell", tabindex: "-1" });
        one.addEventListener("click", () => { wire.go({ layer: l, head: h }); if (shell.facts.kept[l]?.includes(h)) flip(l, h); });
        one.addEventListener("focus", () => wire.go({ layer: l, head: h }));
        one.addEventListener("keydown", (e) => {
          if (e.ctrlKey || e.metaKey || e.altKey) return;
          const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[e.key];
          if (step) { e.preventDefault(); e.stopPropagation(); (cells[l + step[0]]?.[h + step[1]] ?? one).focus(); }
          else if (/^[0-9]$/.test(e.key)) change({ op: "edit", heads: [[l, h]], scale: +e.key / 10 });
          else if (e.key === "a") change({ op: "edit", heads: [[l, h]], scale: 1, mean: !shell.facts.mean[l][h] });
          else if (e.key === "u") undo();
        });
        (cells[l] ??= [])[h] = one;
        board.append(one);
      }
    }
  }

  function show() {
    const { scale: s, mean: m, kept, n_layer: L, n_head: H } = shell.facts, at = ramp(shell.theme), { layer, head: h } = shell.place;
    for (let l = 0; l < L; l++) for (let i = 0; i < H; i++) {
      const one = cells[l][i], factor = s[l][i], gone = !kept[l]?.includes(i);
      const state = gone ? "pruned" : m[l][i] ? "mean" : factor === 1 ? "on" : factor === 0 ? "off" : `×${number(factor)}`;
      one.setAttribute("aria-disabled", String(gone));
      one.dataset.state = state;
      one.title = `${head(l, i)}: ${state}`;
      one.setAttribute("aria-label", one.title);
      one.setAttribute("aria-selected", String(l === layer && i === h));
      one.textContent = state === "mean" ? "µ" : state === "off" || state === "pruned" ? "" : factor !== 1 ? number(factor) : "";
      one.style.background = state === "on" ? css(at(0.45)) : state === "mean" || factor !== 0 ? css(at(0.2)) : "transparent";
      one.tabIndex = l === layer && i === h ? 0 : -1;
    }
    scale.value(s[layer][h]);
  }

  // Every change of the heads can be taken back, wherever it was made.
  function remember() {
    const now = [shell.facts.scale, shell.facts.mean], same = JSON.stringify(now) === JSON.stringify(shown);
    if (!same && !undoing && shown) past.push(shown);
    if (!same) undoing = false;
    shown = now;
  }

  async function load() {
    remember();
    show();
    if (document.activeElement !== off) off.value = shell.facts.off ?? ""; // not under the typing hand
    if (changing) return;
    const answer = await shell.ask({ op: "next", k: wire.get("k") });
    if (answer) paint(answer);
  }

  function paint(answer) {
    const begun = performance.now();
    result.replaceChildren(make("div", { class: "bl-legend" }, make("span", {}, make("i", { class: "bl-before" }), "all heads"), make("span", {}, make("i", { class: "bl-after" }), "edited")),
      bars(answer.labels.map((label, i) => ({ label, before: answer.before[i], after: answer.after[i], note: answer.logits[i] == null ? "" : `${answer.logits[i] >= 0 ? "+" : "−"}${number(Math.abs(answer.logits[i]))} logits` })), { unit: "probability" }));
    const drawn = performance.now() - begun, whole = shell.began ? ` · click to picture ${number(performance.now() - shell.began)} ms` : "";
    shell.began = 0;
    facts.textContent = `KL(all heads ‖ edited) ${number(answer.kl)} nats · forward ${number(answer.forward_ms)} ms from layer ${answer.first} · drawing ${number(drawn)} ms${whole}`;
  }

  build();
  shell.draws.push(show);
  shell.refresh = load;
  shell.placed = show;
  shell.steered = load;
  load();
}
