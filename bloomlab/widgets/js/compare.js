// CompareRuns: one head in two runs and the difference, tokens aligned, one cursor.
const LAYOUTS = [["1", "difference"], ["3", "A, B, difference"], ["6", "and value-weighted"]];

function compare(shell) {
  const { wire } = shell;
  const layout = choice("layout", LAYOUTS, wire.get("layout"), (v) => { wire.set("layout", v); load(); });
  const name = make("span", { class: "bl-tag" }), field = make("div", { class: "bl-compare" }), next = make("div", { class: "bl-result" });
  const layer = slider("layer", { min: 0, max: shell.facts.n_layer - 1, step: 1, value: shell.place.layer, show: String }, (v) => wire.go({ layer: v }));
  const at = slider("head", { min: 0, max: shell.facts.n_head - 1, step: 1, value: shell.place.head, show: String }, (v) => wire.go({ head: v }));
  const look = () => ({ scale: wire.get("scale"), gamma: wire.get("gamma"), threshold: wire.get("threshold") });
  const restyle = () => views.forEach((v) => v.recolor(look()));
  shell.tools.append(layout, layer, at, slider("gamma", { min: 0.4, max: 2.5, step: 0.1, value: wire.get("gamma") }, (v) => { wire.set("gamma", v); restyle(); }));
  shell.body.append(name, field, next);
  let views = [];

  async function load() {
    layer.value(shell.place.layer);
    at.value(shell.place.head);
    const answer = await shell.ask({ op: "compare", layer: shell.place.layer, head: shell.place.head, values: wire.get("layout") === "6" }, { keep: true });
    if (!answer) return;
    name.textContent = `${head(shell.place.layer, shell.place.head)} · ${answer.paired} of ${answer.a.length} and ${answer.b.length} tokens are aligned`;
    const panels = answer.panels.filter((one) => wire.get("layout") !== "1" || one.signed);
    if (views.length !== panels.length) {
      views = panels.map(() => {
        const v = new Zoom(shell, {
          onhover: (q, k) => { for (const o of views) if (o !== v) { o.at = [q, k].map((i) => (i < 0 ? -1 : o.here(v.there(i)))); if (o.at.includes(-1)) o.at = [-1, -1]; o.overlay(); } },
          onpick: (q, k) => { const [query, key] = [v.there(q), v.there(k)]; if (query >= 0 && key >= 0) wire.go({ query, key }); },
        });
        return v;
      });
      field.replaceChildren(...views.map((v, i) => make("figure", {}, make("figcaption", {}), v.el)));
    }
    panels.forEach((one, i) => {
      field.children[i].firstChild.textContent = one.title;
      const tokens = answer[one.tokens], ofA = answer.pairs.map(([a]) => a), ofB = answer.pairs.map(([, b]) => b);
      // columns of A, which the selection names, from columns here and back; -1 for an unaligned token
      const of = { a: null, b: ofB, c: ofA.map((_, i) => i) }[one.tokens];
      views[i].there = (at) => (of ? ofA[of.indexOf(at)] ?? -1 : at);
      views[i].here = (at) => (of ? of[ofA.indexOf(at)] ?? -1 : at);
      views[i].size = side(panels.length);
      views[i].look = look();
      views[i].set(square(answer.buffers[answer.panels.indexOf(one)], tokens.length, one.signed ? 128 : 0), tokens, one);
    });
    next.replaceChildren(make("div", { class: "bl-legend" }, make("span", {}, make("i", { class: "bl-before" }), answer.names[0]), make("span", {}, make("i", { class: "bl-after" }), answer.names[1])), bars(answer.labels.map((label, i) => ({ label, before: answer.before[i], after: answer.after[i] })), { unit: "probability" }));
  }

  const side = (count) => Math.max(140, Math.min(count === 1 ? 480 : 360, shell.body.clientWidth / Math.min(3, count) - Math.max(60, ...views.map((v) => v.room)) - 14));
  shell.tokenAt = (text) => { shell.idle = text; if (!shell.status.classList.contains("bl-trouble")) shell.status.textContent = text; };
  shell.draws.push(() => views.forEach((v) => { v.size = side(views.length); v.recolor(look()); }));
  shell.refresh = load;
  let seen = "";
  shell.placed = () => { const now = `${shell.place.layer}.${shell.place.head}`; if (now !== seen) { seen = now; load(); } else views.forEach((v) => v.overlay()); };
  shell.steered = () => { layout.value(wire.get("layout")); load(); };
  load();
}
