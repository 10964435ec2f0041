// Bytes to pictures: lower triangles unpacked, coloured by a table, pooled when there is no room.
const MODES = [["pattern", "attention"], ["value", "value-weighted"], ["content", "content only"], ["alibi", "ALiBi only"], ["difference", "edited − clean"], ["importance", "importance"]];

function square(bytes, n, ground = 0) {
  if (bytes.length === n * n) return bytes;
  const full = new Uint8Array(n * n).fill(ground);
  for (let row = 0, at = 0; row < n; at += ++row) full.set(bytes.subarray(at, at + row + 1), row * n);
  return full;
}

function painted(canvas, bytes, width, height, words) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = words[bytes[i]];
  context.putImageData(image, 0, 0);
  return canvas;
}

// The strongest of each block: a single spike survives. For signed bytes, the farthest from 128.
function pooled(bytes, n, factor, middle) {
  const m = Math.ceil(n / factor), small = new Uint8Array(m * m).fill(middle);
  for (let row = 0; row < n; row++) {
    const base = Math.floor(row / factor) * m;
    for (let column = 0; column < n; column++) {
      const to = base + Math.floor(column / factor), value = bytes[row * n + column];
      if (Math.abs(value - middle) > Math.abs(small[to] - middle)) small[to] = value;
    }
  }
  return { bytes: small, n: m };
}

function fitted(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

// CSS colours may be variables of variables: ask the browser for the result.
function inkOf(shell, name) {
  const probe = shell.probe ??= shell.root.appendChild(make("span", { class: "bl-probe", "aria-hidden": "true" }));
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
}
