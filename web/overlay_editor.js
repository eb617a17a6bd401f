// A picture in a node on which its widgets' values are drawn, moved by mouse and keyboard. All state is in the widgets;
// an editor per kind of overlay says what there is to move (horizon_editor.js is the shortest).
import { app } from "../../scripts/app.js";
import "./advanced_widgets.js"; // its button stands above the editor
import { backdrop } from "./backdrop.js";
import { isThere } from "./distill_view.js";

const OPEN = "dual_process_editor"; // the node's property that says that the editor is unfolded
const FOLDED = 40;
const PADDING = 20; // what the classic renderer leaves around it
const MARGIN = 8; // pixels around the picture, in which handles at its edge have room
const STEP = 0.01; // of the picture's side: what an arrow key moves, and where everything comes to lie
const LARGE = 5; // steps with Shift
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const kinds = new Map(); // node type -> kind
const editors = new Map(); // node -> Editor

export function element(tag, properties = {}, children = []) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export function svg(tag, attributes = {}, children = []) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A number within limits, to the nearest step. */
export function snap(value, low = 0, high = 1, step = STEP) {
  const inside = Math.min(high, Math.max(low, value));
  return Number((Math.round(inside / step) * step).toFixed(4));
}

/** Black or white, whichever is seen on a colour. */
export function contrast(color) {
  const [red, green, blue] = [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
  return 0.299 * red + 0.587 * green + 0.114 * blue < 153 ? "#fff" : "#000";
}

/** A round handle of the colour of what it moves. */
export function knob(x, y, color, radius = 6) {
  return [
    svg("circle", { cx: x, cy: y, r: radius + 6, class: "dp-hit dp-ring" }),
    svg("circle", { cx: x, cy: y, r: radius, fill: color, class: "dp-knob" }),
  ];
}

/**
 * Adds an editor to a type of node. A kind has
 *   widgets: names of those whose values it draws; values it cannot write, such as a colour, may be among them
 *   moved: names of those that it writes; while one of them is connected, the editor only shows
 *   hint: what a person can do
 *   items(editor): what is on the picture, the lowest first: { key, label, at: [x, y], parts: SVG elements in pixels,
 *     move(x, y), step?(across, down, steps), remove?() }; places are fractions of the picture
 *   create?(editor, x, y): makes something at an empty place; the key of the item to go on dragging with
 *   created?(editor): when that has been let go
 *   tools?(editor), below?(editor): elements above and below the picture; what they do goes through editor.change
 *   update?(editor): brings these up to date
 *   height: pixels, at least
 */
export function addEditor(type, kind) {
  kinds.set(type, kind);
}

class Editor {
  constructor(node, kind) {
    this.node = node;
    this.kind = kind;
    this.items = new Map();
    this.chosen = null; // key of the item that was last in hand
    this.grab = null; // what is dragged, and where it was taken
    this.fold = element("button", { type: "button", className: "dp-fold", onclick: () => this.toggle() });
    this.hint = element("div", { className: "dp-hint" });
    this.frame = svg("rect", { class: "dp-frame" });
    this.grid = svg("path", { class: "dp-grid" });
    this.picture = svg("image", { preserveAspectRatio: "none" });
    this.layer = svg("g");
    const drawn = [this.frame, this.grid, this.picture, this.layer];
    this.surface = svg("svg", { class: "dp-surface", role: "group", tabindex: -1, "aria-label": kind.hint }, drawn);
    this.root = element("div", { className: "dp-editor" }, [
      element("div", { className: "dp-editor-top" }, [this.fold, ...(kind.tools?.(this) ?? [])]),
      this.surface,
      ...(kind.below?.(this) ?? []),
      this.hint,
    ]);
    this.root.style.setProperty("--dp-height", `${kind.height - PADDING}px`);
    this.listen();
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  widget(name) {
    return this.node.widgets.find((widget) => widget.name === name);
  }

  value(name) {
    return this.widget(name).value;
  }

  write(name, value) {
    this.widget(name).value = value;
    app.canvas.setDirty(true, true);
    this.draw();
  }

  /** What an action changes is one step to undo. */
  change(action) {
    app.canvas.emitBeforeChange();
    action();
    app.canvas.emitAfterChange();
  }

  get open() {
    return this.node.properties[OPEN];
  }

  /** Whether a value comes from another node, so that there is nothing to move here. */
  get locked() {
    return this.node.inputs.some(({ link, widget }) => link != null && this.kind.moved.includes(widget?.name));
  }

  toggle() {
    this.node.properties[OPEN] = !this.open;
    this.draw();
    const { node } = this;
    node.setSize([node.size[0], node.computeSize()[1]]);
    app.canvas.setDirty(true, true);
  }

  listen() {
    const { surface } = this;
    surface.addEventListener("pointerdown", (event) => this.take(event));
    surface.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of ["pointerup", "pointercancel"]) surface.addEventListener(end, () => this.drop());
    surface.addEventListener("mousedown", (event) => event.preventDefault()); // the focus is where `take` puts it
    surface.addEventListener("keydown", (event) => this.press(event));
    surface.addEventListener("focusin", ({ target }) => this.choose(target.dataset.key));
    new ResizeObserver(() => this.refresh()).observe(surface); // it also appears so
  }

  /** Where the mouse is, in fractions of the picture. */
  place({ clientX, clientY }) {
    const { left, top, width, height } = this.frame.getBoundingClientRect();
    return [(clientX - left) / width, (clientY - top) / height];
  }

  take(event) {
    if (event.button !== 0 || event.ctrlKey || event.metaKey) return;
    event.stopPropagation(); // neither the node nor the canvas is dragged
    if (this.locked || this.grab) return;
    const [x, y] = this.place(event);
    const found = event.target.closest("[data-key]")?.dataset.key;
    const key = found ?? this.kind.create?.(this, snap(x), snap(y));
    const item = this.items.get(key);
    if (!item) return;
    this.surface.setPointerCapture(event.pointerId);
    this.grab = { key, made: !found, dx: found ? x - item.at[0] : 0, dy: found ? y - item.at[1] : 0 };
    this.focus(key);
  }

  drag(event) {
    if (!this.grab) return;
    const { key, dx, dy } = this.grab;
    const [x, y] = this.place(event);
    this.items.get(key)?.move(x - dx, y - dy);
  }

  drop() {
    if (this.grab?.made) this.kind.created?.(this);
    this.grab = null;
  }

  press(event) {
    const item = this.items.get(event.target.dataset.key);
    const arrow = ARROWS[event.key];
    if (!item || this.locked || event.ctrlKey || event.metaKey || event.altKey) return;
    if (arrow) {
      const steps = event.shiftKey ? LARGE : 1;
      const [x, y] = [0, 1].map((axis) => item.at[axis] + arrow[axis] * steps * STEP);
      this.change(() => (item.step ? item.step(...arrow, steps) : item.move(x, y)));
    } else if (item.remove && ["Delete", "Backspace"].includes(event.key)) {
      this.change(item.remove);
    } else return;
    event.preventDefault();
    event.stopPropagation(); // it is not for the node
  }

  choose(key) {
    this.chosen = key;
    this.draw();
  }

  focus(key) {
    this.layer.querySelector(`[data-key="${key}"]`)?.focus({ preventScroll: true });
  }

  /** What the drawing depends on. */
  get signature() {
    const { clientWidth, clientHeight } = this.surface;
    const values = this.kind.widgets.map((name) => this.value(name));
    return JSON.stringify([values, this.locked, this.open, clientWidth, clientHeight, backdrop(this.node)]);
  }

  /** Draws again if values have come from elsewhere: typed, undone, or from a subgraph's own widgets. */
  refresh() {
    if (isThere(this.node) && !this.grab && this.root.checkVisibility() && this.signature !== this.drawn) this.draw();
  }

  draw() {
    this.drawn = this.signature;
    this.root.classList.toggle("dp-folded", !this.open);
    this.root.classList.toggle("dp-locked", this.locked);
    this.fold.textContent = this.open ? "▾ Draw" : "▸ Draw";
    this.fold.setAttribute("aria-expanded", this.open);
    this.hint.textContent = this.locked ? "Another node says where: nothing to move here." : this.kind.hint;
    this.drawPicture();
    const { clientWidth, clientHeight } = this.surface;
    if (!this.open || !clientWidth || !clientHeight) return;
    this.fit(clientWidth - 2 * MARGIN, clientHeight - 2 * MARGIN);
    this.drawItems();
    this.kind.update?.(this);
  }

  drawPicture() {
    const source = backdrop(this.node);
    if (source === this.source) return;
    this.source = source;
    this.aspect = null;
    this.picture.removeAttribute("href");
    if (!source) return;
    const image = new Image();
    image.onload = () => {
      if (source !== this.source) return;
      this.picture.setAttribute("href", source);
      this.aspect = image.naturalWidth / image.naturalHeight;
      this.draw();
    };
    image.src = source; // one that is gone leaves the grid
  }

  /** The largest frame of the picture's aspect in the room that there is. */
  fit(width, height) {
    const aspect = this.aspect ?? 1;
    this.width = Math.min(width, height * aspect);
    this.height = this.width / aspect;
    const [left, top] = [MARGIN + (width - this.width) / 2, MARGIN + (height - this.height) / 2];
    for (const box of [this.frame, this.picture]) {
      box.setAttribute("width", this.width);
      box.setAttribute("height", this.height);
    }
    const quarters = [0.25, 0.5, 0.75];
    const lines = quarters.map((q) => `M${q * this.width} 0v${this.height}M0 ${q * this.height}h${this.width}`);
    this.grid.setAttribute("d", this.aspect ? "" : lines.join(""));
    for (const part of this.surface.children) part.setAttribute("transform", `translate(${left} ${top})`);
  }

  /** Groups are kept by their keys, so that one that has the focus keeps it. */
  drawItems() {
    const items = this.kind.items(this);
    this.items = new Map(items.map((item) => [item.key, item]));
    const groups = new Map([...this.layer.children].map((group) => [group.dataset.key, group]));
    for (const [key, group] of groups) if (!this.items.has(key)) group.remove();
    items.forEach(({ key, label, parts }, i) => {
      const group = groups.get(key) ?? svg("g", { "data-key": key, role: "button" });
      group.setAttribute("tabindex", this.locked ? -1 : 0);
      group.setAttribute("aria-label", label);
      group.replaceChildren(...parts, svg("title", {}, [label]));
      if (this.layer.children[i] !== group) this.layer.insertBefore(group, this.layer.children[i] ?? null);
    });
  }
}

function refreshAll() {
  if (document.hidden) return;
  for (const [node, editor] of editors) {
    if (isThere(node)) editor.refresh();
    else if (!editor.root.isConnected) editors.delete(node);
    else {
      // Undo has made the node anew, and Nodes 2.0 goes on showing what the old one had.
      const newer = editors.get(app.canvas.graph.getNodeById(node.id));
      if (newer && !newer.root.isConnected) editor.root.replaceWith(newer.root);
    }
  }
}

app.registerExtension({
  name: "DualProcess.OverlayEditors",
  setup() {
    const href = new URL("./overlay_editor.css", import.meta.url).href;
    document.head.append(element("link", { rel: "stylesheet", href }));
    setInterval(refreshAll, 100);
  },
  nodeCreated(node) {
    const kind = kinds.get(node.comfyClass);
    if (!kind) return;
    node.properties[OPEN] = true;
    const editor = new Editor(node, kind);
    const height = () => (editor.open ? kind.height : FOLDED);
    const widget = node.addDOMWidget("editor", "dual_process_editor", editor.root, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: height,
      getMaxHeight: () => (editor.open ? undefined : FOLDED),
    });
    widget.serialize = false; // widget values are saved by position: ours is none
    editors.set(node, editor);
    node.setSize([Math.max(node.size[0], 300), Math.max(node.size[1], node.computeSize()[1])]);
  },
  /** Workflows from before there were editors were laid out without. */
  beforeConfigureGraph({ nodes, definitions }) {
    const all = [nodes, ...(definitions?.subgraphs ?? []).map((subgraph) => subgraph.nodes)].flat();
    for (const node of all) {
      if (kinds.has(node?.type)) node.properties = { [OPEN]: false, ...node.properties };
    }
  },
});
