// What Distill LoRA shows of its newest run. The state lives on the server (nodes/view.py); every tab only draws it.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import "./advanced_widgets.js"; // its button stands above the view

const NODE = "DualProcessDistill";
const KEY = "dual_process_view"; // the node's property that names its runs
const HEIGHT = 460; // pixels, at least
const SMOOTH = 10; // steps of the running mean
const BUSY = ["preparing", "training", "judging"];
const SIGNS = { learned: "✓", damaged: "▲", hacked: "✕", "not learned": "–" };
const LINES = ["#4c9be8", "#e8884c", "#5bb974", "#c77dff", "#e5566d", "#d9b310", "#4cc9c0", "#b08968"];

const views = new Map(); // node -> View

/** A new key; crypto.randomUUID is missing on plain http addresses. */
function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
}

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function duration(seconds) {
  if (seconds < 90) return `about ${Math.max(1, Math.round(seconds))} s left`;
  if (seconds < 5400) return `about ${Math.round(seconds / 60)} min left`;
  return `about ${(seconds / 3600).toFixed(1)} h left`;
}

/** Running mean over the values that are known. */
function smooth(values) {
  return values.map((_, i) => {
    const known = values.slice(Math.max(0, i - SMOOTH + 1), i + 1).filter((v) => v !== null);
    return known.length ? known.reduce((a, b) => a + b) / known.length : null;
  });
}

class View {
  constructor(node) {
    this.node = node;
    this.state = null;
    this.missed = null; // events that came while the whole state was on its way
    this.root = element("div", "dual-process-view");
    this.root.innerHTML = `
      <div class="dp-top"><span class="dp-status" role="status"></span><button class="dp-stop" type="button" hidden
        title="End the training well: the LoRA so far goes on through the graph.">Stop and keep</button></div>
      <div class="dp-bar"><div></div></div>
      <div class="dp-pictures"></div>
      <div class="dp-charts"></div>
      <div class="dp-verdict"></div>
      <div class="dp-saved"></div>
      <div class="dp-about"></div>`;
    this.find(".dp-stop").addEventListener("click", () => this.stop());
    this.root.addEventListener("wheel", (event) => {
      if (this.root.scrollHeight > this.root.clientHeight && !event.ctrlKey) event.stopPropagation();
    });
    new ResizeObserver(() => this.later()).observe(this.root); // it also appears so
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  get key() {
    return this.node.properties[KEY];
  }

  /** Asks the server for everything: on opening, on a new run, after the connection was lost. */
  async load() {
    const { key } = this;
    const missed = (this.missed = []);
    try {
      const answer = await api.fetchApi(`/dual_process/runs/${key}`);
      const state = answer.ok ? await answer.json() : this.state;
      if (missed !== this.missed || key !== this.key) return; // a newer call will tell
      this.state = state;
    } catch (error) {
      console.warn("Distill LoRA: the state of the run could not be read.", error);
      if (missed !== this.missed) return;
    }
    this.missed = null;
    if (this.state) missed.forEach((event) => this.take(event));
    this.later();
  }

  /** One event of the server. */
  take(event) {
    const { key, started, row, ...patch } = event;
    if (!started && this.missed) return this.missed.push(event);
    if (started || !this.state) return this.load();
    Object.assign(this.state, patch);
    const { curves } = this.state;
    if (row && row.step > (curves.step.at(-1) ?? 0)) {
      this.state.step = row.step;
      curves.step.push(row.step);
      curves.loss.push(row.loss);
      row.p_answer.forEach((p, i) => curves.p_answer[i].push(p));
      Object.entries(row.penalties).forEach(([name, value]) => curves.penalties[name].push(value));
    }
    this.later();
  }

  async stop() {
    const button = this.find(".dp-stop");
    button.disabled = true;
    try {
      await api.fetchApi(`/dual_process/runs/${this.key}/stop`, { method: "POST" });
    } catch {
      button.disabled = false; // the connection is lost: to be pressed again
    }
  }

  /** Draws soon, at most four times a second; nothing while nobody sees it. */
  later() {
    this.timer ??= setTimeout(() => {
      this.timer = undefined;
      if (!document.hidden && this.root.checkVisibility()) this.draw();
    }, 250);
  }

  draw() {
    const { state } = this;
    const running = state !== null && BUSY.includes(state.status);
    this.find(".dp-status").textContent = this.status();
    this.root.classList.toggle("dp-failed", state?.status === "failed");
    this.find(".dp-stop").hidden = !running || state.step >= state.train_steps;
    if (!running) this.find(".dp-stop").disabled = false;
    this.find(".dp-bar > div").style.width = state ? `${(100 * state.step) / (state.train_steps || 1)}%` : "0";
    this.drawPictures();
    this.drawVerdict();
    this.find(".dp-saved").textContent = state?.saved ? `Saved as ${state.saved}` : "";
    this.find(".dp-about").replaceChildren(
      ...(state?.about ?? []).map((line, i) => element("div", i ? "dp-note" : "", i ? `⚠ ${line}` : line)),
      ...(state?.memory ? [element("div", "dp-memory", state.memory)] : []),
    );
    this.drawCharts(); // last: they take the room that is left
  }

  status() {
    const { state } = this;
    if (!state) return "Press Run: pictures and curves appear here.";
    if (state.status === "failed") return state.message;
    const parts = [];
    if (state.status === "done") parts.push(state.message || `Done after ${state.step} steps`);
    else if (state.status === "stopped") parts.push(state.message);
    else {
      if (state.step) parts.push(`Step ${state.step} of ${state.train_steps}`);
      if (state.seconds_left) parts.push(duration(state.seconds_left));
      parts.push(state.message || (state.step ? "" : "Preparing"));
    }
    return parts.filter(Boolean).join(" · ").replace(/^./, (letter) => letter.toUpperCase());
  }

  address(which, i, step) {
    return api.apiURL(`/dual_process/runs/${this.key}/${which}_${i}.jpg?step=${step}&run=${this.state.run}`);
  }

  drawPictures() {
    const box = this.find(".dp-pictures");
    const shown = this.state?.pictures;
    const signature = JSON.stringify([this.state?.run, shown]);
    if (signature === this.pictured) return;
    this.pictured = signature;
    const picture = (which, i, step) => {
      const image = element("img", "dp-picture");
      image.alt = `${which}: ${shown.prompts[i]}`;
      image.title = image.alt;
      if (step !== null) image.src = this.address(which, i, step);
      return image;
    };
    const columns = (shown?.prompts ?? []).map((prompt, i) => {
      const column = element("div", "dp-column");
      column.append(picture("before", i, shown.before), picture("now", i, shown.now));
      const words = element("div", "dp-prompt", prompt);
      words.title = prompt;
      column.append(words);
      return column;
    });
    const labels = element("div", "dp-labels");
    labels.append(element("div", "", "before"), element("div", "", shown?.now ? `step ${shown.now}` : "now"));
    box.replaceChildren(...(columns.length ? [labels, ...columns] : []));
  }

  drawCharts() {
    const box = this.find(".dp-charts");
    const { curves, questions, looks } = this.state ?? {};
    if (!curves?.step.length) {
      box.replaceChildren();
      return;
    }
    const asked = (role) =>
      questions
        .map((q, i) => ({ label: `${q.text} → ${q.answer}`, values: curves.p_answer[i], role: q.role }))
        .filter((line) => line.role === role);
    const points = looks.filter((look) => look.score !== null).map(({ step, score }) => ({ step, value: score }));
    const penalties = Object.entries(curves.penalties).map(([label, values]) => ({ label, values }));
    const charts = [
      { title: "Loss", lines: [{ label: "loss in nats", values: curves.loss }] },
      { title: "P(answer)", lines: asked("control"), top: 1, points },
      { title: "P(kept)", lines: asked("keep"), top: 1 },
      { title: "Penalties", lines: penalties },
    ].filter(({ lines }) => lines.length);
    const now = curves.step.at(-1);
    const end = Math.min(this.state.train_steps, Math.max(20, Math.ceil(now * 1.25)));
    while (box.children.length > charts.length) box.lastChild.remove();
    while (box.children.length < charts.length) box.append(makeChart()); // before any is measured
    charts.forEach((chart, i) => drawChart(box.children[i], chart, curves.step, end));
  }

  drawVerdict() {
    const verdict = this.state?.verdict;
    const box = this.find(".dp-verdict");
    box.replaceChildren();
    if (!verdict) return;
    box.dataset.outcome = verdict.outcome;
    box.append(element("b", "", SIGNS[verdict.outcome] ?? ""), element("span", "", ` ${verdict.verdict}`));
  }
}

/** The address of the newest picture that a node's view shows, null if there is none. */
export function lastPicture(node) {
  const view = views.get(node);
  const { now = null, before = null } = view?.state?.pictures ?? {};
  if (now !== null) return view.address("now", 0, now);
  return before === null ? null : view.address("before", 0, before);
}

function makeChart() {
  const figure = element("figure", "dp-chart");
  figure.append(element("figcaption", ""), document.createElement("canvas"));
  return figure;
}

/** Labels without the words that all of them begin with, so that what tells them apart is in sight. */
function apart(labels) {
  const words = labels.map((label) => label.split(" "));
  let same = 0;
  while (words.length > 1 && words.every((w) => same < w.length - 1 && w[same] === words[0][same])) same += 1;
  return words.map((w) => w.slice(same).join(" "));
}

/** The title of a chart, and a coloured name for each of its curves. */
function drawLegend(box, title, lines, points) {
  const item = (label, sign, color, className, full) => {
    const made = element("span", className);
    const mark = element("b", "", sign);
    mark.style.color = color;
    made.append(mark, label && ` ${label}`);
    made.title = full;
    return made;
  };
  const names = lines.length > 3 ? lines.map(() => "") : apart(lines.map(({ label }) => label)); // many find no room
  const items = lines.map(({ label }, i) => item(names[i], "━", LINES[i % LINES.length], "dp-name", label));
  if (points.length) items.push(item("held-out", "●", "inherit", "", "score of held-out pictures"));
  box.replaceChildren(element("span", "", title), ...items);
}

/** Curves over the steps: raw ones pale, running means strong, held-out scores as points. */
function drawChart(figure, { title, lines, points = [], top }, steps, last) {
  drawLegend(figure.firstChild, title, lines, points);
  const newest = ({ label, values }) => `${label}: ${number(values.findLast((v) => v !== null) ?? NaN)}`;
  const scores = points.length ? [`● held-out score: ${number(points.at(-1).value)}`] : [];
  figure.title = [...lines.map(newest), ...scores].join("\n");
  const canvas = figure.lastChild;
  const ratio = 2;
  const [width, height] = [canvas.clientWidth || 200, canvas.clientHeight || 80];
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const draw = canvas.getContext("2d");
  draw.scale(ratio, ratio);
  const known = lines.flatMap(({ values }) => values.filter((v) => v !== null));
  const high = top ?? Math.max(1e-9, ...known);
  const [left, bottom] = [34, height - 14];
  const x = (step) => left + ((width - left - 6) * step) / Math.max(1, last);
  const y = (value) => bottom - ((bottom - 5) * Math.min(value, high)) / high;
  const ink = getComputedStyle(figure).color;
  Object.assign(draw, { font: "10px sans-serif", fillStyle: ink, strokeStyle: ink, lineWidth: 0.5, globalAlpha: 0.7 });
  draw.strokeRect(left, 5, width - left - 6, bottom - 5);
  draw.textAlign = "right";
  draw.fillText(number(high), left - 3, 11);
  draw.fillText("0", left - 3, bottom);
  draw.fillText(String(last), width - 6, height - 3);
  lines.forEach(({ values }, i) => {
    draw.strokeStyle = LINES[i % LINES.length];
    const few = values.filter((v) => v !== null).length < 3;
    const paths = few ? [[values, 1, 1.6]] : [[values, 0.35, 1], [smooth(values), 1, 1.6]];
    for (const [path, alpha, thick] of paths) {
      Object.assign(draw, { globalAlpha: alpha, lineWidth: thick });
      draw.beginPath();
      let drawn = false;
      path.forEach((value, j) => {
        if (value === null) return;
        drawn ? draw.lineTo(x(steps[j]), y(value)) : draw.moveTo(x(steps[j]), y(value));
        drawn = true;
      });
      draw.stroke();
    }
  });
  Object.assign(draw, { globalAlpha: 1, fillStyle: ink });
  for (const { step, value } of points) {
    draw.beginPath();
    draw.arc(x(step), y(value), 2.2, 0, 7);
    draw.fill();
  }
}

function number(value) {
  return value >= 100 || value === Math.round(value) ? String(Math.round(value)) : value.toPrecision(2);
}

/** Whether a node is still in a graph or in one of its subgraphs, and not of a workflow that was closed. */
export function isThere(node) {
  const { graph } = node;
  if (graph?.getNodeById(node.id) !== node) return false;
  const root = graph.rootGraph ?? graph;
  return graph === root || root.subgraphs.get(graph.id) === graph;
}

/** No two nodes share a key: a copy gets one of its own, and the newer of two is the copy. */
function ownKey(node) {
  const older = [...views.keys()];
  older.length = older.indexOf(node);
  if (older.some((other) => isThere(other) && other.properties[KEY] === node.properties[KEY])) {
    node.properties[KEY] = newKey();
  }
}

app.registerExtension({
  name: "DualProcess.DistillView",
  setup() {
    const style = document.createElement("link");
    style.rel = "stylesheet";
    style.href = new URL("./distill_view.css", import.meta.url).href;
    document.head.append(style);
    api.addEventListener("dual_process.view", ({ detail }) => {
      for (const [node, view] of views) if (node.properties[KEY] === detail.key) view.take(detail);
    });
    api.addEventListener("reconnected", () => views.forEach((view) => view.load()));
    document.addEventListener("visibilitychange", () => views.forEach((view) => view.later()));
  },
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const view = new View(node);
    const widget = node.addDOMWidget("view", "dual_process_view", view.root, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => HEIGHT,
    });
    widget.serialize = false; // widget values are saved by position: ours is none
    node.setSize([Math.max(node.size[0], 470), Math.max(node.size[1], node.computeSize()[1])]);
    views.set(node, view);
    node.properties[KEY] = newKey(); // at once: it is part of what ComfyUI saves and undoes
    // The properties of a loaded or pasted node, which go before, come after this turn.
    setTimeout(() => {
      if (!views.has(node)) return;
      ownKey(node);
      view.load();
    });
  },
  afterConfigureGraph() {
    for (const [node, view] of views) {
      if (!isThere(node)) views.delete(node);
      else view.load();
    }
  },
});
