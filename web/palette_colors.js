import { app } from "../../scripts/app.js";
import { element } from "./overlay_editor.js";

// Core's widget for colours can be edited in Nodes 2.0 only. The classic renderer gets swatches of ours in its place.
const NODE = "DualProcessPaletteOverlay";
const TAKEN = "taken"; // the widget that shows what was taken from a picture
const MOST = 12;

/** Shows the colours that a run has taken from the picture at `reference`, and offers to keep them. */
function showTaken(node, colors, taken) {
  const swatches = taken.map((color) => {
    const swatch = element("span", { title: color });
    swatch.style.background = color;
    return swatch;
  });
  const title = "Writes them into colors, to be changed there, and disconnects the picture";
  const keep = element("button", { type: "button", textContent: "Keep", title });
  keep.onclick = () => {
    app.canvas.emitBeforeChange();
    colors.value = taken;
    node.disconnectInput("reference");
    node.drawSwatches();
    hideTaken(node);
    app.canvas.emitAfterChange(); // one step to undo
  };
  hideTaken(node);
  const row = element("div", { className: "dp-swatches dp-taken" }, ["Taken:", ...swatches, keep]);
  const widget = node.addDOMWidget(TAKEN, "dual_process_taken", row, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => 32,
    getMaxHeight: () => 32,
  });
  widget.serialize = false; // widget values are saved by position: ours is none
  node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
}

function hideTaken(node) {
  const widget = node.widgets.find(({ name }) => name === TAKEN);
  if (widget) node.removeWidget(widget);
}

app.registerExtension({
  name: "DualProcess.PaletteColors",
  nodeCreated(node) {
    const colors = node.widgets?.find((widget) => widget.name === "colors");
    if (node.comfyClass !== NODE || !colors) return;
    const row = element("div", { className: "dp-swatches" });
    const change = (values) => {
      colors.value = values;
      draw();
    };
    const draw = () => {
      const { value } = colors;
      const swatches = value.map((color, i) =>
        element("input", {
          type: "color",
          value: color,
          title: `Colour ${i + 1}: ${color}`,
          onchange: (event) => change(value.with(i, event.target.value)),
        }),
      );
      const fewer = { type: "button", textContent: "−", title: "Leave out the last colour", disabled: value.length < 2 };
      const more = { type: "button", textContent: "+", title: "Add a colour", disabled: value.length >= MOST };
      fewer.onclick = () => change(value.slice(0, -1));
      more.onclick = () => change([...value, value.at(-1)]);
      row.replaceChildren(...swatches, element("button", fewer), element("button", more));
    };
    colors.hidden = true; // counts in the classic renderer only
    const widget = node.addDOMWidget("swatches", "dual_process_swatches", row, {
      serialize: false,
      hideOnZoom: false,
      canvasOnly: true, // and this hides ours in the other one
      getMinHeight: () => 32,
    });
    widget.serialize = false; // widget values are saved by position: ours is none
    node.drawSwatches = draw;
    const { onExecuted } = node;
    node.onExecuted = (output) => {
      onExecuted?.call(node, output);
      const taken = output?.dual_process_colors;
      if (taken) showTaken(node, colors, taken);
    };
    setTimeout(draw); // the values of a pasted node come after this turn
  },
  loadedGraphNode(node) {
    node.drawSwatches?.();
  },
});
