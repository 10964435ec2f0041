// PruningBoard: what rankings of heads are worth, beside chance; a point is a mask to look at.
function pruning(shell) {
  const { wire } = shell;
  const boards = make("div", { class: "bl-split" }), key = make("div", {});
  shell.body.append(key, boards);
  shell.idle = "click a point: its heads go off in every view of the session";

  function draw() {
    const { curves, bands, metric, picked } = shell.facts;
    if (!curves) return;
    const names = [...new Set(curves.map((c) => c.ranking))], colors = palette(shell.theme), color = (name) => colors[names.indexOf(name) % colors.length], soft = inkOf(shell, "--bl-soft");
    const shown = (set) => [
      ...bands.filter((b) => b.dataset === set).map((b) => ({ name: "random, 5–95 %", color: soft, dash: "4 3", x: b.kept, y: b.mean, low: b.low, high: b.high })),
      ...curves.filter((c) => c.dataset === set).map((c) => ({ name: c.ranking, color: color(c.ranking), x: c.kept, y: c.value, points: true, onpick: (i) => shell.ask({ op: "load", ranking: c.ranking, kept: c.kept[i] }, { write: true }) }))];
    key.replaceChildren(legend([{ name: "random, 5–95 %", color: soft }, ...names.map((name) => ({ name, color: color(name) }))]));
    boards.replaceChildren(...[...new Set(curves.map((c) => c.dataset))].map((set) => make("figure", {}, make("figcaption", {}, set), chart({ label: `${metric} against heads kept, ${set}`, lines: shown(set), xTitle: "heads kept", yTitle: metric, height: 260, marks: picked ? [picked.kept] : [] }))));
    shell.idle = picked ? `${picked.ranking}: ${picked.kept} heads kept, the others are off now` : shell.idle;
    if (!shell.status.classList.contains("bl-trouble")) shell.status.textContent = shell.idle;
  }

  shell.draws.push(draw);
  shell.refresh = draw;
  draw();
}
