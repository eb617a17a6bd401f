import { app } from "../../scripts/app.js";

// Core's widget for colours can be edited in Nodes 2.0 only. The classic renderer gets swatches of ours in its place.
const NODE = "DualProcessPaletteOverlay";
const MOST = 12;

function element(tag, properties, children = []) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
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
    setTimeout(draw); // the values of a pasted node come after this turn
  },
  loadedGraphNode(node) {
    node.drawSwatches?.();
  },
});
