// Tokens as a person reads them: escaped by construction, each script in its own direction.
function short(text, limit = 14) {
  const letters = [...text];
  return letters.length <= limit ? text : `${letters.slice(0, limit - 1).join("")}…`;
}

// A wrapped text of token buttons; weights 0..1 colour them. One tab stop, arrows move.
class Strip {
  constructor(shell, { onpick, onhover, label }) {
    this.shell = shell;
    this.el = make("div", { class: "bl-strip", role: "listbox", "aria-label": label });
    this.spans = [];
    this.at = 0;
    this.onpick = onpick;
    this.onhover = onhover;
    const of = (e) => this.spans.indexOf(e.target.closest(".bl-token"));
    this.el.addEventListener("pointerover", (e) => { const i = of(e); if (i >= 0) onhover?.(i); });
    this.el.addEventListener("pointerleave", () => onhover?.(-1));
    this.el.addEventListener("click", (e) => { const i = of(e); if (i >= 0) { this.focus(i); onpick?.(i); } });
    this.el.addEventListener("keydown", (e) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, Home: -1e9, End: 1e9 }[e.key];
      if (step) { e.preventDefault(); this.focus(Math.min(this.spans.length - 1, Math.max(0, this.at + step))); onhover?.(this.at); }
      if (e.key === "Enter" || e.key === " ") { e.preventDefault(); onpick?.(this.at); }
    });
  }

  set(tokens, from = Infinity) {
    this.at = 0;
    this.spans = tokens.map((token, i) => make("span", {
      class: `bl-token${/⁄/.test(token) ? " bl-piece" : ""}${i >= from ? " bl-new" : ""}`, role: "option", tabindex: i ? "-1" : "0", dir: "auto", title: `${i}: ${token}` }, token));
    this.el.replaceChildren(...this.spans);
  }

  focus(i) {
    this.spans[this.at]?.setAttribute("tabindex", "-1");
    this.at = i;
    this.spans[i]?.setAttribute("tabindex", "0");
    this.spans[i]?.focus({ preventScroll: false });
  }

  // weights[i] in 0..1, or null for a token that does not count; chosen is marked.
  color(weights, chosen, { signed = false, scale } = {}) {
    const theme = this.shell.theme, at = signed ? divide(theme) : ramp(theme, scale);
    this.spans.forEach((span, i) => {
      const w = weights?.[i];
      const color = w == null ? null : at(signed ? w : w * 0.85);
      span.style.background = color ? css(color) : "";
      span.style.color = color ? (0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] > 140 ? "#111" : "#fff") : "";
      span.classList.toggle("bl-dim", w == null && weights != null);
      span.classList.toggle("bl-chosen", i === chosen);
      span.setAttribute("aria-selected", String(i === chosen));
    });
  }
}
