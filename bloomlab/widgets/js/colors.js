// Colours of numbers: tables of 256 entries, made for the page's background.
const SCALES = {
  lab: { light: ["#ffffff", "#c3d4fb", "#6f94ee", "#5b47c4", "#54158c", "#2a0533"], dark: ["#111111", "#1d2a5e", "#4a4fc0", "#a04fc9", "#f0707a", "#ffe08a"] },
  heat: { light: ["#ffffff", "#ffe0b0", "#fb9d4f", "#d8432f", "#861a3c", "#2d0a2a"], dark: ["#111111", "#4a1230", "#a02a3a", "#e8682f", "#ffc35c", "#fff6d0"] },
  grey: { light: ["#ffffff", "#111111"], dark: ["#111111", "#f5f5f5"] },
};
const MINUS = { light: "#1558c0", dark: "#7ab4ff" };
const PLUS = { light: "#b8430a", dark: "#ff9a55" };

function rgb(hex) { return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)); }

function mixed(stops, t) {
  const x = Math.min(1, Math.max(0, t || 0)) * (stops.length - 1), i = Math.min(stops.length - 2, Math.floor(x));
  const a = rgb(stops[i]), b = rgb(stops[i + 1]);
  return a.map((v, c) => Math.round(v + (b[c] - v) * (x - i)));
}

function css([r, g, b]) { return `rgb(${r},${g},${b})`; }

function isDark(el) {
  for (let at = el; at; at = at.parentElement) {
    const found = getComputedStyle(at).backgroundColor.match(/[\d.]+/g)?.map(Number);
    if (found && (found.length < 4 || found[3] > 0)) return 0.3 * found[0] + 0.59 * found[1] + 0.11 * found[2] < 128;
  }
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

function ramp(theme, scale = "lab") { return (t) => mixed((SCALES[scale] ?? SCALES.lab)[theme], t); }

function divide(theme) {
  const ground = SCALES.lab[theme][0];
  return (t) => (t < 0 ? mixed([ground, MINUS[theme]], -t) : mixed([ground, PLUS[theme]], t));
}

// byte -> colour as a little-endian word. Bytes are square roots: gamma 1 shows the square root.
function table(theme, { scale = "lab", gamma = 1, threshold = 0, signed = false } = {}) {
  const words = new Uint32Array(256), at = ramp(theme, scale), sides = divide(theme);
  for (let i = 0; i < 256; i++) {
    const root = signed ? (i - 128) / 127 : i / 255, size = Math.abs(root);
    const shown = size * size < threshold ? 0 : Math.sign(root) * size ** gamma;
    const [r, g, b] = signed ? sides(shown) : at(shown);
    words[i] = (255 << 24) | (b << 16) | (g << 8) | r;
  }
  return words;
}

function valueOf(byte, top = 1, signed = false) {
  const root = signed ? (byte - 128) / 127 : byte / 255;
  return Math.sign(root) * root * root * top;
}

// Least and largest of the finite ones.
function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) if (Number.isFinite(v)) { if (v < low) low = v; if (v > high) high = v; }
  return low > high ? [0, 1] : [low, high];
}

function number(value) {
  if (value == null || !Number.isFinite(value)) return "not a number";
  const size = Math.abs(value);
  if (size === 0) return "0";
  return size >= 1000 || size < 0.001 ? value.toExponential(1) : value.toPrecision(3).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
}
