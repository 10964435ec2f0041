// HiddenStates: how long the stream is, where it turns, its paths in a plane, who speaks for a token.
const SIGHTS = [["norms", "norms"], ["cosines", "cosine with the layer before"], ["paths", "paths (PCA)"], ["parts", "who speaks for the next token"]];

function hidden(shell) {
  const { wire } = shell;
  let data = null, parts = null;
  const sight = choice("show", SIGHTS, wire.get("sight"), (v) => { wire.set("sight", v); load(); });
  const canvas = make("canvas", { class: "bl-canvas", tabindex: "0", role: "img" }), out = make("div", {}), notes = make("div", { class: "bl-facts" });
  shell.tools.append(sight);
  shell.body.append(canvas, out, notes);
  canvas.addEventListener("pointermove", (e) => point(e));
  canvas.addEventListener("click", (e) => { const [, pos] = cellOf(e); if (pos >= 0) wire.go({ query: pos }); });
  canvas.addEventListener("keydown", (e) => { const by = { ArrowRight: 1, ArrowLeft: -1 }[e.key]; if (by) { e.preventDefault(); e.stopPropagation(); wire.go({ query: Math.min(shell.facts.tokens.length - 1, Math.max(0, shell.place.query + by)) }); tell(); } });

  async function load() {
    const run = shell.place.run;
    if (wire.get("sight") === "parts") {
      parts = await shell.ask({ op: "parts", position: position(), run });
    } else {
      const answer = await shell.ask({ op: "stream", run }, { keep: true });
      if (answer) data = { norms: asFloats(answer.buffers[0]), cosines: asFloats(answer.buffers[1]), points: asFloats(answer.buffers[2]), ...answer };
    }
    draw();
  }

  const position = () => { const n = shell.facts.tokens.length; return shell.place.query < 0 ? n - 1 : Math.min(n - 1, shell.place.query); };
  const rows = () => shell.facts.n_layer + (wire.get("sight") === "norms" ? 1 : 0);
  const unit = () => Math.max(2, Math.min(44, (shell.body.clientWidth - 60) / shell.facts.tokens.length));
  const cellOf = (e) => { const b = canvas.getBoundingClientRect(), pos = Math.floor((e.clientX - b.left - 40) / unit()), row = Math.floor((e.clientY - b.top - 4) / 20); return row < 0 || row >= rows() || pos < 0 || pos >= shell.facts.tokens.length ? [-1, -1] : [rows() - 1 - row, pos]; };

  // The chosen token's numbers in every layer, for those who do not point.
  function tell() {
    const what = wire.get("sight"), n = shell.facts.tokens.length, pos = shell.place.query;
    if (data && ["norms", "cosines"].includes(what)) shell.tell(`${pos} ${shell.facts.tokens[pos]}, ${what} by layer: ${Array.from({ length: rows() }, (_, l) => number(data[what][l * n + pos])).join(", ")}`);
  }

  function point(e) {
    const [layer, pos] = cellOf(e), n = shell.facts.tokens.length;
    if (!data || layer < 0 || !["norms", "cosines"].includes(wire.get("sight"))) return;
    const what = wire.get("sight");
    shell.idle = `${what === "norms" ? (layer === 0 ? "embedding" : `after layer ${layer - 1}`) : `layer ${layer}`}, ${pos} ${shell.facts.tokens[pos]}: ${what === "norms" ? "norm" : "cosine"} ${number(data[what][layer * n + pos])}`;
    if (!shell.status.classList.contains("bl-trouble")) shell.status.textContent = shell.idle;
    shell.hover({ query: pos });
  }

  function draw() {
    const what = wire.get("sight");
    canvas.hidden = what === "parts";
    out.replaceChildren();
    notes.textContent = "";
    if (what === "parts") {
      if (!parts) return;
      out.append(make("p", {}, `logit of ${parts.answer} after ${parts.position} ${shell.facts.tokens[parts.position]}: ${number(parts.logit)}, the sum of what each component writes (nothing left out)`),
        bars(parts.names.map((label, i) => ({ label, after: parts.values[i] })), { unit: "logits", onpick: (i) => { const at = parts.names[i].match(/^L(\d+)H(\d+)$/); if (at) wire.go({ layer: +at[1], head: +at[2] }); } }));
      return;
    }
    if (!data) return;
    if (what === "paths") return paths();
    const n = shell.facts.tokens.length, R = rows(), w = unit(), step = Math.ceil(14 / w), context = fitted(canvas, 40 + n * w + 8, R * 20 + 24 + 7 * Math.max(...shell.facts.tokens.map((t) => [...short(t, 13)].length)));
    canvas.setAttribute("aria-label", `${what} of ${n} tokens by layer`);
    const values = data[what], [low, high] = extent(values.map((v) => (v > 0 ? Math.log(v) : NaN))), at = ramp(shell.theme), two = divide(shell.theme);
    context.font = "11px system-ui, 'Noto Sans', sans-serif";
    for (let l = 0; l < R; l++) {
      for (let i = 0; i < n; i++) {
        const v = values[l * n + i];
        context.fillStyle = css(what === "norms" ? at(v > 0 ? 0.08 + 0.85 * ((Math.log(v) - low) / (high - low || 1)) : 0) : two(v));
        context.fillRect(40 + i * w, 4 + (R - 1 - l) * 20, Math.max(1, w - (w > 6 ? 1 : 0)), 19);
      }
      context.fillStyle = inkOf(shell, "--bl-soft");
      context.textAlign = "right";
      context.fillText(what === "norms" ? (l ? `L${l - 1}` : "emb") : `L${l}`, 35, 18 + (R - 1 - l) * 20);
    }
    for (let i = 0; i < n; i += step) {
      context.save();
      context.translate(40 + (i + 0.5) * w + 4, R * 20 + 8);
      context.rotate(Math.PI / 2);
      context.textAlign = "left";
      context.fillStyle = inkOf(shell, i === shell.place.query ? "--bl-accent" : "--bl-fg");
      context.fillText(short(shell.facts.tokens[i], 13), 0, 0);
      context.restore();
    }
    if (shell.place.query >= 0) { context.strokeStyle = inkOf(shell, "--bl-accent"); context.lineWidth = 2; context.strokeRect(40 + shell.place.query * w, 3, w, R * 20 + 2); }
    notes.textContent = data.massive.length ? `massive activations: ${data.massive.slice(-4).map((m) => `channel ${m.channel} of ${shell.facts.tokens[m.token]} ${m.layer ? `after L${m.layer - 1}` : "in the embedding"} is ${number(m.value)}, ${number(m.times)} × the median`).join(" · ")}` : "no number stands out of its layer by a factor of 20";
  }

  function paths() {
    const n = shell.facts.tokens.length, S = shell.facts.n_layer + 1, side = Math.min(560, Math.max(260, shell.body.clientWidth - 40)), context = fitted(canvas, side, side), p = data.points;
    canvas.setAttribute("aria-label", `paths of ${n} tokens through ${S} states in the plane of two principal components`);
    const [x0, x1] = extent(p.filter((_, i) => i % 2 === 0)), [y0, y1] = extent(p.filter((_, i) => i % 2)), span = Math.max(x1 - x0, y1 - y0) || 1;
    const x = (v) => 20 + ((v - x0) / span) * (side - 40), y = (v) => side - 20 - ((v - y0) / span) * (side - 40), colors = palette(shell.theme);
    context.font = "11px system-ui, 'Noto Sans', sans-serif";
    const chosen = shell.place.query;
    for (let i = 0; i < n; i++) {
      const strong = i === chosen || (chosen < 0 && n <= 12);
      context.globalAlpha = strong ? 1 : 0.35;
      context.strokeStyle = context.fillStyle = i === chosen ? inkOf(shell, "--bl-accent") : colors[i % colors.length];
      context.lineWidth = strong ? 2 : 1;
      context.beginPath();
      for (let s = 0; s < S; s++) context[s ? "lineTo" : "moveTo"](x(p[(s * n + i) * 2]), y(p[(s * n + i) * 2 + 1]));
      context.stroke();
      const last = [x(p[((S - 1) * n + i) * 2]), y(p[((S - 1) * n + i) * 2 + 1])];
      context.beginPath();
      context.arc(...last, strong ? 4 : 2.5, 0, 7);
      context.fill();
      if (strong || n <= 24) { context.fillStyle = inkOf(shell, "--bl-fg"); context.textAlign = last[0] > side - 90 ? "right" : "left"; context.fillText(short(shell.facts.tokens[i], 12), last[0] + (last[0] > side - 90 ? -6 : 6), last[1] + 4); }
    }
    context.globalAlpha = 1;
    notes.textContent = `plane of two principal components of all layers and tokens (directions, lengths taken out): ${number(data.explained[0] * 100)} % and ${number(data.explained[1] * 100)} % of the variance; dots are the last layer`;
  }

  shell.draws.push(draw);
  shell.refresh = () => { data = parts = null; load(); };
  let seen = "";
  shell.placed = () => { const now = `${shell.place.run}${wire.get("sight") === "parts" ? shell.place.query : ""}`; if (now !== seen) { seen = now; load(); } else draw(); };
  shell.steered = () => { sight.value(wire.get("sight")); load(); };
  load();
}
