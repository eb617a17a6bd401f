import { app } from "../../scripts/app.js";

// A colour for each of our socket types, told apart on dark and on light backgrounds.
const COLORS = {
  DUAL_PROCESS_CRITIC: "#c77dff",
  DUAL_PROCESS_QUESTION: "#f4a259",
  DUAL_PROCESS_OVERLAY: "#e5566d",
  DUAL_PROCESS_LOSS: "#d9b310",
  DUAL_PROCESS_PROMPTS: "#3fa7d6",
  DUAL_PROCESS_CHECKPOINT: "#59a96a",
  DUAL_PROCESS_PAINTER: "#e07be0",
  DUAL_PROCESS_PLAN: "#9aa5ff",
  DUAL_PROCESS_TRAJECTORY: "#2ec4b6",
};

/** The classic renderer's tables; a colour palette that is chosen later empties them. */
function paint() {
  Object.assign(app.canvas.default_connection_color_byType, COLORS);
  Object.assign(LGraphCanvas.link_type_colors, COLORS);
  app.canvas.setDirty(true, true);
}

app.registerExtension({
  name: "DualProcess.SocketColors",
  afterConfigureGraph: paint,
  setup() {
    const style = document.createElement("style"); // for Nodes 2.0
    const rules = Object.entries(COLORS).map(([type, color]) => `--color-datatype-${type}: ${color};`);
    style.textContent = `:root { ${rules.join(" ")} }`;
    document.head.append(style);
    paint();
    setTimeout(paint, 1000); // the chosen palette is put in place late
    app.ui.settings.addEventListener("Comfy.ColorPalette.change", () => setTimeout(paint, 500));
  },
});
