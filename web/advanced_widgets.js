import { app } from "../../scripts/app.js";

// Nodes 2.0 folds advanced widgets away by itself; the classic renderer shows them all. There, a button of ours does it
// (`hidden` counts there only; both measure nodes by it).
const PREFIX = "DualProcess";
const OPEN = "dual_process_advanced"; // the node's property that says that they are shown

function fold(node) {
  const widgets = node.widgets.filter((widget) => widget.options?.advanced);
  const button = node.widgets.find((widget) => widget.name === OPEN);
  if (!button) return;
  const open = Boolean(node.properties[OPEN]);
  const before = node.computeSize()[1];
  for (const widget of widgets) widget.hidden = !open;
  button.label = open ? "Hide advanced settings" : `Show ${widgets.length} advanced setting${widgets.length > 1 ? "s" : ""}`;
  const height = Math.max(node.computeSize()[1], node.size[1] + node.computeSize()[1] - before);
  node.setSize([node.size[0], height]);
  node.setDirtyCanvas(true, true);
}

app.registerExtension({
  name: "DualProcess.AdvancedWidgets",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith(PREFIX)) return;
    if (!node.widgets?.some((widget) => widget.options?.advanced)) return;
    const toggle = () => {
      node.properties[OPEN] = !node.properties[OPEN];
      fold(node);
    };
    const button = node.addWidget("button", OPEN, null, toggle, { canvasOnly: true, serialize: false });
    button.serialize = false; // widget values are saved by position: this one has none
    fold(node);
  },
  loadedGraphNode(node) {
    if (node.comfyClass?.startsWith(PREFIX) && node.properties[OPEN]) fold(node);
  },
});
