// TokenStrip: the text itself, coloured by what a token attends to, or is attended by.
const FLOWS = [["head", "chosen head"], ["value", "chosen head, value-weighted"], ["mean", "mean of the layer"], ["rollout", "rollout up to the layer"]];

function strip(shell) {
  const { wire } = shell;
  let n = 0, bytes = null, over = -1, top = 1;
  const set = (name, then) => (value) => { wire.set(name, value); then(); };
  const flow = choice("by", FLOWS, wire.get("flow"), set("flow", load));
  const side = choice("colours show", [["from", "what it attends to"], ["to", "what attends to it"]], wire.get("side"), set("side", color));
  const list = new Strip(shell, {
    label: "tokens of the prompt",
    onpick: (i) => wire.go({ query: shell.place.query === i ? -1 : i, key: -1 }),
    onhover: (i) => { over = i; color(); },
  });
  shell.tools.append(flow, side, toggle("hide first token", wire.get("sink"), set("sink", color)), slider("gamma", { min: 0.4, max: 2.5, step: 0.1, value: wire.get("gamma") }, set("gamma", color)));
  shell.body.append(list.el);
  shell.idle = "point at a token, or move with the arrows; click keeps it";

  async function load() {
    const { layer, head: h, run } = shell.place;
    const answer = await shell.ask({ op: "flow", flow: wire.get("flow"), layer, head: h, run }, { keep: true });
    if (!answer) return;
    if (list.key !== shell.facts.version) { list.set(shell.facts.tokens); list.key = shell.facts.version; }
    n = shell.facts.tokens.length;
    top = answer.top;
    bytes = square(answer.buffers[0], n);
    color();
  }

  function color() {
    const i = over >= 0 ? over : shell.place.query;
    if (!bytes || i < 0 || i >= n) return list.color(null, -1);
    const from = wire.get("side") === "from", hide = wire.get("sink"), weights = Array.from({ length: n }, (_, j) => {
      if (from ? j > i : j < i) return null;
      if (hide && (from ? j === 0 && i > 0 : i === 0)) return 0;
      return (bytes[from ? i * n + j : j * n + i] / 255) ** wire.get("gamma");
    });
    list.color(weights, i, { scale: wire.get("scale") });
    const best = weights.map((w, j) => [w ?? -1, j]).sort((a, b) => b[0] - a[0]).slice(0, 3).filter(([w]) => w > 0);
    const { layer, head: h } = shell.place, whose = ["head", "value"].includes(wire.get("flow")) ? head(layer, h) : `layer ${layer}`;
    shell.idle = `${whose}: ${i} ${shell.facts.tokens[i]} ${from ? "→" : "←"} ${best.map(([, j]) => `${shell.facts.tokens[j]} ${number(valueOf(bytes[from ? i * n + j : j * n + i], top))}`).join(", ")}`;
    if (!shell.status.classList.contains("bl-trouble")) shell.status.textContent = shell.idle;
  }

  shell.draws.push(color);
  shell.onHover(({ query }) => { if (query !== undefined) { over = query; color(); } });
  shell.refresh = load;
  let seen = "";
  shell.placed = () => { const now = JSON.stringify([shell.place.layer, shell.place.head, shell.place.run]); if (now !== seen) { seen = now; load(); } else color(); };
  shell.steered = () => { flow.value(wire.get("flow")); side.value(wire.get("side")); load(); };
  load();
}
