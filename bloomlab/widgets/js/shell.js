// What stands around every view: title, controls, status, full window, code; and small DOM makers.
function make(tag, attributes = {}, ...children) {
  const el = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) el.addEventListener(name.slice(2), value);
    else if (name in el && typeof value !== "string") el[name] = value;
    else if (value !== false && value != null) el.setAttribute(name, value);
  }
  el.append(...children.filter((child) => child != null));
  return el;
}

const button = (label, title, onclick, attributes = {}) =>
  make("button", { type: "button", class: "bl-button", title, onclick, ...attributes }, label);

function choice(label, options, value, onchange) {
  const pick = make("select", { class: "bl-select", "aria-label": label, onchange: () => onchange(pick.value) });
  for (const [name, text] of options) pick.append(make("option", { value: name, selected: name === value }, text));
  const whole = make("label", { class: "bl-control" }, label, pick);
  whole.value = (now) => { pick.value = now; };
  return whole;
}

function slider(label, { min, max, step, value, show = number }, oninput) {
  const out = make("output", {}, show(value));
  const bar = make("input", { type: "range", min: String(min), max: String(max), step: String(step), "aria-label": label });
  bar.value = String(value);
  bar.addEventListener("input", () => { out.textContent = show(+bar.value); oninput(+bar.value); });
  const whole = make("label", { class: "bl-control" }, label, bar, out);
  whole.value = (now) => { bar.value = String(now); out.textContent = show(+now); };
  whole.range = (low, high) => { bar.min = String(low); bar.max = String(high); };
  return whole;
}

function toggle(label, value, onchange) {
  const box = make("input", { type: "checkbox" });
  box.checked = Boolean(value);
  box.addEventListener("change", () => onchange(box.checked));
  const whole = make("label", { class: "bl-control" }, box, label);
  whole.value = (now) => { box.checked = now; };
  return whole;
}

class Shell {
  constructor(model, el, name, keys) {
    this.model = model;
    this.wire = new Wire(model);
    this.ended = new AbortController();
    this.draws = [];
    this.title = make("span", { class: "bl-title" }, name);
    this.tools = make("span", { class: "bl-tools" });
    this.body = make("div", { class: "bl-body" });
    this.status = make("div", { class: "bl-status", role: "status" });
    this.twin = make("div", { class: "bl-twin", "aria-live": "polite" });
    this.root = make("section", { class: "bl", "aria-label": name },
      make("div", { class: "bl-bar", role: "toolbar", "aria-label": `${name} controls` }, this.title, this.tools,
        make("span", { class: "bl-end" },
          button("code", "copy Python that makes this view", () => this.copy(), { "aria-label": "copy as code" }),
          button("⛶", "full window (Esc ends it)", () => this.full(), { "aria-label": "full window", "aria-pressed": "false" }))),
      this.body, this.status, this.twin);
    if (keys) this.root.append(make("div", { class: "bl-keys" }, keys));
    el.append(this.root);
    this.listen("change:status", () => this.say(model.get("status")));
    this.listen("change:facts", () => this.changed());
    this.listen("change:place", () => this.placed?.());
    this.listen("change:controls", () => this.wire.setting || this.steered?.());
    // JupyterLab's single-key shortcuts would act on the notebook: it asks the focused element itself.
    this.root.addEventListener("focusin", (e) => e.target.setAttribute("data-lm-suppress-shortcuts", "true"));
    this.root.addEventListener("mouseleave", () => this.wire.flush());
    document.addEventListener("keydown", (e) => { if (e.key === "Escape" && this.isFull) this.full(); }, { signal: this.ended.signal });
    this.sizes = new ResizeObserver(() => this.root.clientWidth && this.redraw());
    this.sizes.observe(this.root);
    this.themes = new MutationObserver(() => this.redraw());
    this.themes.observe(document.body, { attributes: true });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw(), { signal: this.ended.signal });
    this.say(model.get("status"));
  }

  listen(event, f) {
    this.model.on(event, f);
    this.ended.signal.addEventListener("abort", () => this.model.off(event, f));
  }

  onHover(f) { bus.addEventListener("hover", (e) => e.detail.group === this.facts.group && e.detail.from !== this && f(e.detail), { signal: this.ended.signal }); }

  hover(detail) { bus.dispatchEvent(new CustomEvent("hover", { detail: { group: this.facts.group, from: this, ...detail } })); }

  close() {
    this.ended.abort();
    this.sizes.disconnect();
    this.themes.disconnect();
    this.wire.close();
  }

  get facts() { return this.model.get("facts"); }
  get place() { return this.model.get("place"); }
  get theme() { return isDark(this.root) ? "dark" : "light"; }
  get isFull() { return this.root.classList.contains("bl-full"); }

  say(text) { this.status.textContent = text || this.idle || ""; this.status.classList.toggle("bl-trouble", Boolean(text)); }

  tell(text) { this.twin.textContent = text; }

  // Drawing waits for the next frame; several calls make one.
  redraw() {
    if (this.soon) return;
    this.soon = requestAnimationFrame(() => {
      this.soon = 0;
      if (!this.root.clientWidth) return;
      if (this.unseen) { this.unseen = false; this.refresh?.(); }
      const begun = performance.now();
      this.draws.forEach((f) => f());
      this.drawn = performance.now() - begun;
    });
  }

  changed() { this.refresh?.(); }

  // A question whose answer is drawn; troubles are said, stale answers dropped. A view that is not
  // seen (in a closed tab, not yet in the page) asks nothing and catches up when it is.
  async ask(question, options) {
    if (!this.root.clientWidth) { this.unseen = true; return null; }
    const begun = performance.now();
    this.root.setAttribute("aria-busy", "true");
    try {
      const answer = await this.wire.ask(question, options);
      if (answer) {
        this.say(answer.trouble ?? this.model.get("status"));
        requestAnimationFrame(() => requestAnimationFrame(() => {
          const bytes = answer.buffers.reduce((sum, one) => sum + one.length, 0);
          const detail = { op: question.op, ms: performance.now() - begun, bytes };
          this.root.dispatchEvent(new CustomEvent("bloomlab:painted", { bubbles: true, detail }));
        }));
      }
      return answer;
    } catch (error) {
      this.say(error.message);
      return null;
    } finally {
      this.root.removeAttribute("aria-busy");
    }
  }

  full() {
    const on = this.root.classList.toggle("bl-full");
    if (on && this.root.showPopover) { // the top layer: no ancestor confines it there
      this.root.popover = "manual";
      this.root.showPopover();
    } else this.root.removeAttribute("popover");
    this.root.querySelector("[aria-pressed]").setAttribute("aria-pressed", String(on));
    this.redraw();
  }

  async copy() {
    const answer = await this.ask({ op: "code" });
    if (!answer) return;
    try {
      await navigator.clipboard.writeText(answer.code);
      this.say("");
      this.status.textContent = "copied: Python that makes this view";
    } catch {
      const area = make("textarea", { class: "bl-code", readonly: "", "aria-label": "Python that makes this view" });
      area.value = answer.code;
      this.body.querySelector(".bl-code")?.remove();
      this.body.append(area);
      area.select();
    }
  }
}

function head(layer, at) { return `L${layer}H${at}`; }
