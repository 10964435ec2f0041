// Few points as SVG: lines with bands, bars before and after. Text is text, colours are the page's.
const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes = {}, ...children) {
  const el = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) el.addEventListener(name.slice(2), value);
    else if (value != null) el.setAttribute(name, value);
  }
  el.append(...children);
  return el;
}

function ticks(low, high, count = 5) {
  const raw = (high - low) / count || 1, unit = 10 ** Math.floor(Math.log10(raw));
  const step = unit * ([1, 2, 5, 10].find((m) => m * unit >= raw) ?? 10), found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-6; t += step) found.push(Math.abs(t) < step * 1e-6 ? 0 : t);
  return found;
}

// lines: [{name, x[], y[], color, dash, low[], high[], points, onpick}]
function chart({ label, width = 460, height = 220, lines, xTitle, yTitle, xNames, marks = [], logX = false, range }) {
  const pad = { l: 62, r: xNames ? 34 : 14, t: 12, b: 40 }, w = width - pad.l - pad.r, hgt = height - pad.t - pad.b;
  const all = (name) => lines.flatMap((one) => [...(one[name] ?? [])]).filter(Number.isFinite);
  const forX = logX ? (v) => Math.log2(v) : (v) => v, xs = all("x").map(forX);
  const ys = [...all("y"), ...all("low"), ...all("high")];
  const [x0, x1] = extent(xs), [y0, y1] = range ?? extent(ys);
  const px = (v) => pad.l + ((forX(v) - x0) / (x1 - x0 || 1)) * w, py = (v) => pad.t + hgt - ((v - y0) / (y1 - y0 || 1)) * hgt;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "bl-chart", role: "img", "aria-label": label, width, height });
  if (!ys.length) return picture;
  for (const t of ticks(y0, y1)) picture.append(svg("line", { x1: pad.l, x2: width - pad.r, y1: py(t), y2: py(t), class: "bl-rule" }), svg("text", { x: pad.l - 6, y: py(t) + 4, "text-anchor": "end" }, number(t)));
  if (xNames) {
    const step = Math.ceil(xNames.length / Math.max(2, Math.floor(w / 52)));
    xNames.forEach((name, i) => i % step || picture.append(svg("text", { x: px(i), y: height - pad.b + 16, "text-anchor": "middle" }, short(name, 9))));
  } else for (const t of ticks(x0, x1)) picture.append(svg("text", { x: pad.l + ((t - x0) / (x1 - x0 || 1)) * w, y: height - pad.b + 16, "text-anchor": "middle" }, logX ? number(2 ** t) : number(t)));
  picture.append(svg("text", { x: pad.l + w / 2, y: height - 6, "text-anchor": "middle", class: "bl-axis" }, xTitle ?? ""),
    svg("text", { x: 14, y: pad.t + hgt / 2, "text-anchor": "middle", class: "bl-axis", transform: `rotate(-90 14 ${pad.t + hgt / 2})` }, yTitle ?? ""));
  for (const at of marks) picture.append(svg("line", { x1: px(at), x2: px(at), y1: pad.t, y2: pad.t + hgt, class: "bl-mark" }));
  for (const one of lines) {
    const points = [...one.x].map((x, i) => [px(x), py(one.y[i]), i]).filter(([, , i]) => Number.isFinite(one.y[i]));
    if (one.low) {
      const edge = [...[...one.x].map((x, i) => [px(x), py(one.high[i])]), ...[...one.x].map((x, i) => [px(x), py(one.low[i])]).reverse()];
      picture.append(svg("path", { d: `M${edge.map((p) => p.join(",")).join("L")}Z`, fill: one.color, opacity: 0.2 }));
    }
    picture.append(svg("path", { d: points.length ? `M${points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join("L")}` : "", fill: "none", stroke: one.color, "stroke-width": one.bold ? 3 : 1.6, "stroke-dasharray": one.dash }, svg("title", {}, one.name ?? "")));
    if (one.points) points.forEach(([x, y, i]) => {
      const say = `${one.name}: ${number(one.x[i])}, ${number(one.y[i])}`;
      const dot = svg("circle", { cx: x, cy: y, r: 5, fill: one.color, tabindex: one.onpick ? 0 : null, role: one.onpick ? "button" : null, "aria-label": say, class: one.onpick ? "bl-pick" : null }, svg("title", {}, say));
      if (one.onpick) { dot.addEventListener("click", () => one.onpick(i)); dot.addEventListener("keydown", (e) => (e.key === "Enter" || e.key === " ") && (e.preventDefault(), one.onpick(i))); }
      picture.append(dot);
    });
  }
  return picture;
}

function legend(lines) {
  return make("div", { class: "bl-legend" }, ...lines.map((one) => make("span", {}, make("i", { style: `background:${one.color}` }), one.name)));
}

// rows: [{label, before, after, note}], bars as shares of the largest; onpick gets the index.
function bars(rows, { unit = "", onpick, picked, names = ["before", "after"] } = {}) {
  const top = Math.max(...rows.flatMap((r) => [Math.abs(r.before ?? 0), Math.abs(r.after ?? 0)]), 1e-9);
  const list = make("div", { class: "bl-bars", role: onpick ? "listbox" : "list" });
  rows.forEach((row, i) => {
    const line = make("div", { class: "bl-bar-row", role: onpick ? "option" : "listitem", tabindex: onpick ? "0" : null, "aria-selected": onpick ? String(i === picked) : null },
      make("span", { class: "bl-bar-name", title: row.label, dir: "auto" }, row.label));
    const track = make("span", { class: "bl-tracks" });
    for (const [which, value] of [["before", row.before], ["after", row.after]]) {
      if (value == null) continue;
      const side = value < 0 ? " bl-negative" : "";
      track.append(make("span", { class: "bl-track" }, make("span", { class: `bl-fill bl-${which}${side}`, style: `width:${(Math.abs(value) / top) * 100}%` }), make("span", { class: "bl-value" }, number(value))));
    }
    line.append(track, make("span", { class: "bl-note" }, row.note ?? ""));
    line.setAttribute("aria-label", `${row.label}: ${[row.before, row.after].filter((v) => v != null).map(number).join(" then ")} ${unit} ${row.note ?? ""}`);
    if (onpick) {
      line.addEventListener("click", () => onpick(i));
      line.addEventListener("keydown", (e) => (e.key === "Enter" || e.key === " ") && (e.preventDefault(), onpick(i)));
    }
    list.append(line);
  });
  return list;
}

const palette = (theme) => (theme === "dark" ? ["#7ab4ff", "#ff9a55", "#c792ff", "#6fd0a0", "#ff8fb8", "#e3d26f"] : ["#1558c0", "#b8430a", "#7a2bc4", "#0b7a4b", "#b0195f", "#7a6500"]);
