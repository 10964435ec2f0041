// Questions to the kernel: numbered, the latest of a channel wins, answers kept for a while.
const bus = (globalThis[Symbol.for("bloomlab")] ??= new EventTarget());
const KEPT = 40;

class Wire {
  constructor(model) {
    this.model = model;
    this.me = Math.random().toString(36).slice(2);
    this.next = 0;
    this.sent = 0;
    this.waiting = new Map(); // id -> {channel, done}
    this.channels = new Map(); // channel -> {id, later}
    this.kept = new Map(); // question -> answer, least recently used first
    this.dirty = false;
    this.hear = (message, buffers) => this.receive(message, buffers);
    model.on("msg:custom", this.hear);
  }

  close() { this.model.off("msg:custom", this.hear); }

  facts() { return this.model.get("facts"); }

  // The answer {.., buffers}, or null if a later question of the channel made it stale.
  // What changes the session (`write`) is always sent and always answered.
  ask(question, { channel = question.op, keep = false, write = false } = {}) {
    if (write) channel = `write ${this.next + 1} ${Math.random()}`;
    const key = this.facts().version + canonical(question);
    if (keep && this.kept.has(key)) {
      const found = this.kept.get(key);
      this.kept.delete(key);
      this.kept.set(key, found);
      const open = this.channels.get(channel); // what is on its way was asked before: it comes too late
      open?.later?.drop();
      if (open) open.later = { send() {}, drop() {} };
      return Promise.resolve(found);
    }
    const busy = this.channels.get(channel);
    if (keep && busy?.key === key && !busy.later) return busy.promise;
    const promise = new Promise((resolve, reject) => {
      const send = () => this.send(question, channel, { key: keep ? key : "", write, resolve, reject });
      if (!busy) return send();
      busy.later?.drop();
      busy.later = { send, drop: () => resolve(null) };
    });
    const now = this.channels.get(channel);
    if (now && !now.promise) now.promise = promise;
    return promise;
  }

  has(question) { return this.kept.has(this.facts().version + canonical(question)); }

  send(question, channel, asked) {
    const id = `${this.me}.${++this.next}`; // another view of this widget hears our answers too
    this.sent++;
    this.channels.set(channel, { id, key: asked.key, later: null });
    this.waiting.set(id, { ...asked, channel, version: this.facts().version });
    this.flush();
    this.model.send({ ...question, id });
  }

  receive(message, buffers) {
    const asked = this.waiting.get(message.id);
    if (!asked) return;
    this.waiting.delete(message.id);
    const { later } = this.channels.get(asked.channel) ?? {};
    this.channels.delete(asked.channel);
    if (message.error !== undefined) asked.reject(new Error(message.error));
    else {
      const bytes = buffers.map((b) => new Uint8Array(b.buffer, b.byteOffset, b.byteLength));
      const answer = { ...message, buffers: bytes };
      const stale = !asked.write && (later || message.version < this.facts().version); // new facts may come after their answer
      if (asked.key && !stale && message.version === asked.version) {
        this.kept.set(asked.key, answer);
        if (this.kept.size > KEPT) this.kept.delete(this.kept.keys().next().value);
      }
      asked.resolve(stale ? null : answer);
    }
    later?.send();
  }

  // Controls are kept here and told to the kernel with the next question, or when the mouse leaves.
  set(name, value) {
    this.setting = true;
    this.model.set("controls", { ...this.model.get("controls"), [name]: value });
    this.setting = false;
    this.dirty = true;
  }

  get(name) { return this.model.get("controls")[name]; }

  flush() {
    if (this.dirty) this.model.save_changes();
    this.dirty = false;
  }

  place() { return this.model.get("place"); }

  go(change) {
    const old = this.place();
    if (Object.entries(change).every(([name, value]) => old[name] === value)) return;
    this.model.set("place", { ...old, ...change });
    this.model.save_changes();
    this.dirty = false;
  }
}

function canonical(question) {
  return JSON.stringify(question, Object.keys(question).sort());
}

function asFloats(bytes) {
  return new Float32Array(bytes.slice().buffer);
}

// A page without a kernel: answers stand in the file.
async function openPage(state, el) {
  const handlers = new Map();
  const values = { ...state };
  const say = (event, ...rest) => handlers.get(event)?.forEach((f) => f(...rest));
  const model = {
    get: (name) => values[name],
    set(name, value) {
      values[name] = value;
      say(`change:${name}`);
      if (name === "place") bus.dispatchEvent(new CustomEvent("place", { detail: { from: model, value } }));
    },
    on: (event, f) => handlers.set(event, [...(handlers.get(event) ?? []), f]),
    off: (event, f) => handlers.set(event, (handlers.get(event) ?? []).filter((g) => g !== f)),
    save_changes() {},
    async send({ id, ...question }) {
      const found = state.answers[canonical(question)];
      const version = values.facts.version;
      if (!found) {
        const error = "not in this page: open the notebook to see it";
        values.status = error;
        say("change:status");
        return say("msg:custom", { id, version, error }, []);
      }
      values.status = "";
      say("change:status");
      const buffers = await Promise.all(found[1].map(inflated));
      say("msg:custom", { id, version, ...found[0] }, buffers);
    },
  };
  bus.addEventListener("place", ({ detail }) => {
    if (detail.from === model) return;
    values.place = detail.value;
    say("change:place");
  });
  entry.render({ model, el });
}

async function inflated(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new DataView(await new Response(stream).arrayBuffer());
}
