// GenScrubber: a generation step by step under the cache, and branches from any step.
function scrub(shell) {
  const { wire } = shell;
  let made = null, step = 0, playing = 0, rows = null;
  const go = slider("step", { min: 0, max: 0, step: 1, value: 0, show: String }, (value) => { step = value; show(); });
  const temperature = slider("temperature", { min: 0.1, max: 2, step: 0.05, value: wire.get("temperature") }, (v) => { wire.set("temperature", v); distribution(); });
  const topK = slider("top-k", { min: 1, max: 512, step: 1, value: wire.get("top_k"), show: String }, (v) => { wire.set("top_k", v); distribution(); });
  const topP = slider("top-p", { min: 0.05, max: 1, step: 0.01, value: wire.get("top_p") }, (v) => { wire.set("top_p", v); distribution(); });
  const length = make("input", { type: "number", class: "bl-number", min: "1", max: "512", value: String(wire.get("max_new_tokens")), "aria-label": "new tokens" });
  length.addEventListener("change", () => wire.set("max_new_tokens", Math.max(1, +length.value)));
  const branch = choice("branch", [["main", "main"]], "main", (name) => fetchBranch(name));
  const play = button("▶", "play (p)", () => toggleplay());
  const text = new Strip(shell, { label: "prompt and generated tokens", onpick: (i) => { const s = i - made.n_prompt; if (s >= 0) { step = s; show(); } } });
  const spark = make("div", {}), dist = make("div", { class: "bl-result" }), notes = make("div", { class: "bl-facts" });
  const mean = toggle("mean of all heads", wire.get("mean"), (v) => { wire.set("mean", v); show(); });
  const another = button("branch with edits", "go on from this step with the heads as they are masked now", () => another_branch(null));
  shell.tools.append(make("label", { class: "bl-control" }, "tokens", length), button("generate", "generate from the prompt", () => generate("generate")), toggle("sample", wire.get("do_sample"), (v) => { wire.set("do_sample", v); distribution(); }), play, go, branch, another, mean);
  shell.body.append(text.el, spark, make("div", { class: "bl-bar" }, temperature, topK, topP), dist, notes);
  shell.idle = "← → scrub · p plays · click a candidate to branch with it";

  const options = () => Object.fromEntries(["max_new_tokens", "do_sample", "temperature", "top_k", "top_p"].map((name) => [name, wire.get(name)]));

  // "open" shows what the session has already; "generate" always makes another.
  async function generate(op) { take(await shell.ask({ op, ...options() }, { channel: "generate", write: op === "generate" })); }

  async function fetchBranch(name) { take(await shell.ask({ op: "branch_of", name }, { channel: "generate", keep: false })); }

  async function another_branch(token) {
    if (!made) return;
    take(await shell.ask({ op: "branch", parent: made.name, ...options(), step, token, max_new_tokens: Math.max(wire.get("max_new_tokens"), step + 1) }, { write: true }));
  }

  function take(answer) {
    if (!answer || !answer.steps) return;
    made = answer;
    const logits = asFloats(answer.buffers[0]), ids = new Int32Array(answer.buffers[1].slice().buffer), wide = logits.length / answer.steps.length;
    answer.steps.forEach((one, i) => { one.logits = logits.slice(i * wide, (i + 1) * wide); one.ids = ids.slice(i * wide, (i + 1) * wide); });
    rows = { key: "" };
    const select = branch.querySelector("select");
    select.replaceChildren(...answer.names.map((name) => make("option", { value: name, selected: name === answer.name }, name)));
    go.range(0, answer.steps.length - 1);
    step = Math.min(answer.since || 0, answer.steps.length - 1);
    text.set([...answer.prompt, ...answer.steps.map((s) => s.label)], answer.n_prompt);
    show();
  }

  // The rows of a head at all steps come at once: scrubbing asks nothing.
  async function heat() {
    const at = made.n_prompt + step, name = made.name, { layer, head: h } = shell.place;
    const question = wire.get("mean") ? { op: "rows", name, layer: 0, head: -1 } : { op: "rows", name, layer, head: h };
    const key = canonical(question) + wire.facts().version;
    if (rows.key !== key) {
      const answer = await shell.ask(question, { keep: true });
      if (!answer || made?.name !== name) return;
      rows = { key, bytes: answer.buffers[0] };
      return heat();
    }
    const from = step * made.n_prompt + (step * (step - 1)) / 2, weights = new Array(made.n_prompt + made.steps.length).fill(null);
    for (let k = 0; k < at; k++) weights[k] = rows.bytes[from + k] / 255;
    text.color(weights, at);
  }

  function show() {
    if (!made) return;
    go.value(step);
    if (shell.place.step !== step && !shell.later) { shell.later = setTimeout(() => { shell.later = 0; wire.go({ step }); }, 200); }
    heat();
    distribution();
    const colors = palette(shell.theme), x = made.steps.map((_, i) => i), lines = [{ name: "entropy (nats)", x, y: made.steps.map((s) => s.entropy), color: colors[0], points: made.steps.length < 80, onpick: (i) => { step = i; show(); } }];
    spark.replaceChildren(chart({ label: "entropy of the next token by step", width: Math.max(300, shell.body.clientWidth - 8), height: 130, lines, xNames: made.steps.map((s) => s.label), yTitle: "nats", xTitle: "generated token", marks: [step] }));
    const one = made.steps[step], reads = Object.entries(one.readings ?? {}).map(([name, values]) => `${name}: ${values.slice(0, 4).map(number).join(", ")}`);
    notes.textContent = [`step ${step}: “${one.label}” · probability ${number(one.probability)} · entropy ${number(one.entropy)} nats · ${number(one.ms)} ms`, made.parent ? `${made.name} left ${made.parent} at step ${made.since}` : "", ...reads].filter(Boolean).join(" · ");
  }

  // Temperature acts on the stored logits, and top-k and top-p if tokens are drawn: nothing is asked.
  function distribution() {
    if (!made) return;
    const one = made.steps[step], t = wire.get("temperature"), best = one.logits[0], sample = wire.get("do_sample");
    let odds = Array.from(one.logits, (v) => Math.exp((v - best) / t));
    if (sample && wire.get("top_k") > 0) odds = odds.slice(0, wire.get("top_k"));
    const sum = () => odds.reduce((a, b) => a + b, 0);
    let seen = 0;
    const most = wire.get("top_p") * sum(), cut = sample && wire.get("top_p") < 1 ? odds.findIndex((v) => { seen += v; return seen - v >= most; }) : -1;
    if (cut > 0) odds = odds.slice(0, cut);
    const all = !sample && t === 1, total = all ? Math.exp(one.scale - best) : sum();
    dist.replaceChildren(bars(odds.slice(0, wire.get("k")).map((v, i) => ({ label: one.labels[i] ?? `id ${one.ids[i]}`, after: v / total, note: one.ids[i] === one.token ? "taken" : "" })), { unit: "probability", picked: one.ids.indexOf(one.token), onpick: (i) => another_branch(one.ids[i]) }),
      make("div", { class: "bl-soft" }, all ? "probabilities, before the choice of the likeliest" : `shares among ${odds.length === one.logits.length ? `the ${odds.length} likeliest tokens` : `the ${odds.length} tokens that are left`}${t === 1 ? "" : ` at temperature ${number(t)}`}`));
  }

  function toggleplay() {
    if (playing) { clearInterval(playing); playing = 0; } else playing = setInterval(() => { if (!made || step >= made.steps.length - 1 || !shell.root.isConnected) return toggleplay(); step++; show(); }, 400);
    play.textContent = playing ? "❚❚" : "▶";
  }

  shell.root.addEventListener("keydown", (e) => {
    if (!made || /INPUT|SELECT/.test(e.target.tagName) || e.target.closest(".bl-strip")) return;
    const by = { ArrowRight: 1, ArrowLeft: -1 }[e.key];
    if (by) { e.preventDefault(); e.stopPropagation(); step = Math.min(made.steps.length - 1, Math.max(0, step + by)); show(); }
    if (e.key === "p") toggleplay();
  });
  shell.ended.signal.addEventListener("abort", () => clearInterval(playing));
  shell.draws.push(() => made && show());
  let prompt = null;
  shell.refresh = () => { if (shell.facts.prompt !== prompt || !made) { prompt = shell.facts.prompt; made = null; generate("open"); } };
  shell.placed = () => {
    if (!made) return;
    const { step: wanted } = shell.place;
    if (wanted >= 0 && wanted !== step && wanted < made.steps.length) { step = wanted; show(); } else heat();
  };
  shell.refresh();
}
