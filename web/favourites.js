// The rounds of Pick Favourites: pictures to mark. The marks are in the widget "picks", a line a round; pictures and
// prompts are the server's (nodes/rounds.py), under the name of the session.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import "./advanced_widgets.js"; // its button stands above the view
import { isThere } from "./distill_view.js";
import { find } from "./errors.js";
import { element } from "./overlay_editor.js";

const NODE = "DualProcessPickFavourites";
const SESSION = "dual_process_favourites"; // what a run gives, and the node's property that names the session
const HEIGHT = 420; // pixels, at least
const MARKS = { liked: { sign: "♥", name: "Favourite" }, rejected: { sign: "✕", name: "Reject" } };

const views = new Map(); // node -> View

/** The marks of a line such as "1 4 -6": a map from places, counted from 1, to "liked" or "rejected". */
function readLine(line = "") {
  const numbers = line.split(/[\s,]+/).map(Number).filter(Number.isInteger);
  return new Map(numbers.filter(Boolean).map((n) => [Math.abs(n), n > 0 ? "liked" : "rejected"]));
}

function writeLine(marks) {
  const places = [...marks.keys()].sort((a, b) => a - b);
  const of = (kind) => places.filter((place) => marks.get(place) === kind);
  return [...of("liked"), ...of("rejected").map((place) => -place)].join(" ");
}

class View {
  constructor(node) {
    this.node = node;
    this.state = null;
    this.message = ""; // while a round is trained
    this.chosen = null; // the round that is looked at, null for the one that is to be marked
    this.back = null; // the round that the person went back to, until the next run
    this.status = element("span", { className: "dp-status", role: "status" });
    this.tabs = element("div", { className: "dp-rounds", role: "group", ariaLabel: "Rounds" });
    this.grid = element("div", { className: "dp-candidates" });
    this.notes = element("div", { className: "dp-note" });
    this.next = element("button", { type: "button", className: "dp-next", onclick: () => this.go() });
    this.undo = element("button", { type: "button", className: "dp-back", onclick: () => this.goBack() });
    this.root = element("div", { className: "dual-process-favourites" }, [
      element("div", { className: "dp-top" }, [this.status, this.tabs]),
      this.grid,
      this.notes,
      element("div", { className: "dp-bottom" }, [this.undo, this.next]),
    ]);
    this.root.addEventListener("wheel", (event) => {
      if (this.grid.scrollHeight > this.grid.clientHeight && !event.ctrlKey) event.stopPropagation();
    });
  }

  get widget() {
    return this.node.widgets.find(({ name }) => name === "picks");
  }

  get lines() {
    const text = String(this.widget.value ?? "").trim();
    return text ? text.split("\n") : [];
  }

  /** The round whose marks the next run takes, counted from 0: the first that was not trained on as it is marked. */
  get active() {
    const done = this.state.rounds.length - 1;
    if (this.back !== null) return Math.min(this.back, done);
    const same = (line, round) => writeLine(readLine(line)) === this.state.rounds[round].picks;
    const other = this.lines.slice(0, done).findIndex((line, round) => !same(line, round));
    return other < 0 ? Math.min(this.lines.length, done) : other;
  }

  async load() {
    const session = this.node.properties[SESSION];
    if (!session) return;
    try {
      const answer = await api.fetchApi(`/dual_process/favourites/${session}/state.json`);
      if (answer.ok && session === this.node.properties[SESSION]) this.take(await answer.json());
    } catch (error) {
      console.warn("Pick Favourites: the rounds could not be read.", error);
    }
  }

  /** What a run gave. */
  take(state) {
    if (state.made !== this.state?.made) this.chosen = this.back = null;
    this.state = state;
    this.message = "";
    this.node.properties[SESSION] = state.session;
    this.draw();
  }

  say(message) {
    this.message = message;
    this.draw();
  }

  write(lines) {
    app.canvas.emitBeforeChange();
    this.widget.value = lines.join("\n");
    app.canvas.emitAfterChange();
    app.canvas.setDirty(true, true);
    this.draw();
  }

  /** Puts a mark on a picture of the active round, or takes it away again. */
  mark(place, kind) {
    const round = this.active;
    const marks = readLine(this.lines[round]);
    marks.get(place) === kind ? marks.delete(place) : marks.set(place, kind);
    this.back = round; // until the run, however the line reads
    const line = writeLine(marks);
    this.write([...this.lines.slice(0, round), ...(line ? [line] : [])]);
  }

  /** Takes the rounds from the one that is looked at back; its marks stay, to be changed. */
  goBack() {
    this.back = this.chosen;
    this.chosen = null;
    this.write(this.lines.slice(0, this.back + 1));
  }

  /** Runs the graph as far as this node. */
  go() {
    const { graph } = this.node;
    const path = graph === (graph.rootGraph ?? graph) ? this.node.id : null; // in a subgraph the whole graph runs
    app.queuePrompt(0, 1, path === null ? undefined : [String(path)]);
  }

  draw() {
    const { state } = this;
    const round = state && (this.chosen ?? this.active);
    const isActive = state !== null && round === this.active;
    const marks = readLine(state ? (isActive ? this.lines[round] : state.rounds[round].picks ?? "") : "");
    const running = this.message !== "";
    this.drawn = this.signature();
    this.status.textContent = this.words(round, isActive, marks);
    this.drawTabs(round);
    this.drawGrid(round, marks, isActive && !running);
    this.notes.replaceChildren(...(state?.notes ?? []).map((note) => element("div", { textContent: `⚠ ${note}` })));
    this.next.textContent = state ? "Next round" : "Show pictures";
    this.next.disabled = running || (state !== null && (!isActive || marks.size === 0));
    this.undo.hidden = isActive || state === null;
    this.undo.disabled = running;
    this.undo.textContent = `Go back to round ${round + 1}`;
  }

  words(round, isActive, marks) {
    if (this.message) return this.message;
    if (!this.state) return "Run shows pictures to mark.";
    const count = (kind) => [...marks.values()].filter((mark) => mark === kind).length;
    const marked = `${count("liked")} ♥  ${count("rejected")} ✕`;
    if (!isActive) return `Round ${round + 1}, over: ${marked}`;
    return `Round ${round + 1}: ${marks.size ? marked : "mark what you like ♥ and what you don't ✕"}`;
  }

  drawTabs(round) {
    const tabs = (this.state?.rounds ?? []).map((_, number) =>
      element("button", {
        type: "button",
        textContent: `${number + 1}`,
        title: `Round ${number + 1}`,
        ariaPressed: `${number === round}`,
        onclick: () => {
          this.chosen = number === this.active ? null : number;
          this.draw();
        },
      }),
    );
    this.tabs.replaceChildren(...(tabs.length > 1 ? tabs : []));
  }

  drawGrid(round, marks, canMark) {
    const prompts = this.state?.rounds[round].prompts ?? [];
    const shown = `${this.state?.session} ${this.state?.made} ${round}`;
    if (this.shown !== shown) {
      this.shown = shown;
      this.grid.replaceChildren(...prompts.map((prompt, i) => this.candidate(round, i + 1, prompt)));
    }
    [...this.grid.children].forEach((box, i) => {
      box.dataset.mark = marks.get(i + 1) ?? "";
      box.querySelectorAll("button").forEach((button) => {
        button.disabled = !canMark;
        button.ariaPressed = `${marks.get(i + 1) === button.dataset.kind}`;
      });
    });
  }

  candidate(round, place, prompt) {
    const { session, made } = this.state;
    const file = `/dual_process/favourites/${session}/round_${round + 1}_${place}.jpg?made=${made}`;
    const image = element("img", { src: api.apiURL(file), alt: `${place}: ${prompt}`, title: prompt, draggable: false });
    image.addEventListener("click", () => {
      const button = box.querySelector("button");
      if (!button.disabled) this.mark(place, "liked");
    });
    const buttons = Object.entries(MARKS).map(([kind, { sign, name }]) => {
      const button = element("button", { type: "button", textContent: sign, title: `${name}: picture ${place}` });
      button.dataset.kind = kind;
      button.onclick = () => this.mark(place, kind);
      return button;
    });
    const number = element("span", { textContent: `${place}` });
    const box = element("div", { className: "dp-candidate" }, [image, element("div", {}, [number, ...buttons])]);
    return box;
  }

  /** What is drawn depends on more than events tell: the widget may be typed into, undone, or loaded. */
  signature() {
    return JSON.stringify([this.widget?.value, this.state?.made, this.message, this.chosen, this.back]);
  }

  refresh() {
    if (this.widget && this.signature() !== this.drawn) this.draw();
  }
}

app.registerExtension({
  name: "DualProcess.Favourites",
  setup() {
    const href = new URL("./favourites.css", import.meta.url).href;
    document.head.append(element("link", { rel: "stylesheet", href }));
    api.addEventListener("dual_process.favourites", ({ detail }) => {
      views.get(find(detail.node, NODE))?.say(detail.message);
    });
    for (const event of ["execution_success", "execution_error", "execution_interrupted"]) {
      api.addEventListener(event, () => views.forEach((view) => view.message && view.say("")));
    }
    api.addEventListener("reconnected", () => views.forEach((view) => view.load()));
    setInterval(() => views.forEach((view) => view.refresh()), 250);
  },
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const view = new View(node);
    const widget = node.addDOMWidget("view", "dual_process_favourites_view", view.root, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => HEIGHT,
    });
    widget.serialize = false; // widget values are saved by position: ours is none
    node.setSize([Math.max(node.size[0], 470), Math.max(node.size[1], node.computeSize()[1])]);
    views.set(node, view);
    view.draw();
    const before = node.onExecuted;
    node.onExecuted = function (output) {
      before?.apply(this, arguments);
      if (output?.[SESSION]?.[0]) view.take(output[SESSION][0]);
    };
    setTimeout(() => view.load()); // the properties of a pasted node come after this turn
  },
  afterConfigureGraph() {
    for (const [node, view] of views) {
      if (!isThere(node)) views.delete(node);
      else view.load();
    }
  },
});
