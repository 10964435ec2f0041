// AlibiView: slopes, how far each head can see, one row's scores taken apart, slopes changed live.
function alibi(shell) {
  const { wire } = shell;
  const top = make("div", { class: "bl-split" }), parts = make("div", {}), factsLine = make("div", { class: "bl-facts" });
  const factor = slider("slope × ", { min: -4, max: 3, step: 0.25, value: 0, show: (v) => (v <= -4 ? "0" : number(2 ** v)) }, (v) => { const { layer, head: h } = shell.place; clearTimeout(shell.waits); shell.waits = setTimeout(() => shell.ask({ op: "slope", layer, head: h, factor: v <= -4 ? 0 : 2 ** v }, { write: true }), 150); });
  shell.tools.append(slider("layer", { min: 0, max: shell.facts.n_layer - 1, step: 1, value: shell.place.layer, show: String }, (v) => wire.go({ layer: v })),
    slider("head", { min: 0, max: shell.facts.n_head - 1, step: 1, value: shell.place.head, show: String }, (v) => wire.go({ head: v })),
    slider("distance", { min: 8, max: 512, step: 8, value: wire.get("distance"), show: String }, (v) => { wire.set("distance", v); draw(); }),
    factor, button("as trained", "all slopes as they were", () => shell.ask({ op: "slopes_back" }, { write: true })));
  shell.body.append(top, parts, factsLine);
  let data = null, row = null;

  async function load() {
    row = null;
    data = await shell.ask({ op: "slopes", layer: shell.place.layer, run: shell.place.run }) ?? data;
    if (!data) return;
    draw();
    await scores();
    const next = await shell.ask({ op: "next", k: 3 });
    if (next) factsLine.textContent = `next token now ${next.labels.map((l, i) => `${l} ${number(next.after[i])}`).join(", ")} · KL from the unedited ${number(next.kl)} nats · forward ${number(next.forward_ms)} ms`;
  }

  async function scores() {
    const n = shell.facts.tokens.length, query = shell.place.query < 0 ? n - 1 : Math.min(n - 1, shell.place.query);
    const answer = await shell.ask({ op: "scores", layer: shell.place.layer, head: shell.place.head, query, run: shell.place.run });
    if (!answer) return;
    row = { query, content: asFloats(answer.buffers[0]), bias: asFloats(answer.buffers[1]), pattern: asFloats(answer.buffers[2]) };
    draw();
  }

  function draw() {
    if (!data) return;
    const { head: h, layer } = shell.place, colors = palette(shell.theme), x = Array.from({ length: wire.get("distance") + 1 }, (_, i) => i), soft = inkOf(shell, "--bl-soft");
    const lines = data.slopes.map((slope, i) => ({ name: head(layer, data.heads[i]), color: data.heads[i] === h ? colors[1] : soft, bold: data.heads[i] === h, x, y: x.map((d) => -slope * d) }));
    lines.sort((a, b) => (a.bold ? 1 : 0) - (b.bold ? 1 : 0));
    const windows = [{ name: "reach", color: colors[0], x: data.heads, y: data.slopes.map((s) => Math.log2(Math.log(20) / Math.max(s, 1e-6))), points: true, onpick: (i) => wire.go({ head: data.heads[i] }) }];
    const at = data.heads.indexOf(h), slope = data.slopes[at];
    top.replaceChildren(
      make("figure", {}, make("figcaption", {}, `bias over distance, ${head(layer, h)} in colour`), chart({ label: "ALiBi bias over distance", lines, xTitle: "tokens back", yTitle: "bias (logits)", range: [Math.min(-1, ...lines.map((l) => l.y.at(-1))), 0] })),
      make("figure", {}, make("figcaption", {}, "reach: where the bias has cost a factor of 20"), chart({ label: "effective window of each head", lines: windows, xTitle: "head", yTitle: "log₂ tokens", marks: at < 0 ? [] : [h] })));
    if (slope !== undefined) { const f = shell.facts.slopes[layer][h]; factor.value(f === 0 ? -4 : Math.log2(f)); shell.idle = `${head(layer, h)}: slope ${number(slope)} logits a token${f === 1 ? "" : ` (×${number(f)})`}, reach ${number(Math.log(20) / Math.max(slope, 1e-9))} tokens`; if (!shell.status.classList.contains("bl-trouble")) shell.status.textContent = shell.idle; }
    if (!row) return;
    const keys = Array.from(row.content, (_, i) => i), shown = keys.slice(-40);
    const pick = (values) => shown.map((i) => values[i]);
    const rows = [["content q·k/√d", row.content, colors[0]], ["bias", row.bias, colors[1]], ["score", row.content.map((v, i) => v + row.bias[i]), colors[2]]].map(([name, values, color]) => ({ name, color, x: shown.map((_, i) => i), y: pick(values), points: true }));
    parts.replaceChildren(make("figure", {}, make("figcaption", {}, `scores of ${row.query} ${shell.facts.tokens[row.query]} in ${head(layer, h)}${keys.length > 40 ? ", the last 40 keys" : ""}`), legend(rows),
      chart({ label: "score of each key, content plus bias", lines: rows, xNames: shown.map((i) => shell.facts.tokens[i]), xTitle: "key", yTitle: "logits", width: Math.max(320, shell.body.clientWidth - 12), height: 240 })));
  }

  shell.draws.push(draw);
  shell.refresh = load;
  let seen = "";
  shell.placed = () => { const now = shell.place.run + shell.place.layer; if (seen !== now) { seen = now; load(); } else { row = null; draw(); scores(); } };
  shell.steered = draw;
  load();
}
