import { addEditor, knob, snap, svg } from "./overlay_editor.js";

const STEEPEST = 45; // degrees
const TILT_STEP = 0.5;
const ENDS = 0.42; // how far from the middle the handles of the tilt are, fraction of the width

function items(editor) {
  const { width, height } = editor;
  const [position, tilt, color] = ["position", "tilt", "color"].map((name) => editor.value(name));
  const slope = Math.tan((tilt * Math.PI) / 180);
  const y = (x) => position * height - slope * (x - width / 2);
  // A steep line leaves the picture before its sides.
  const leaves = (at) => width / 2 + (position * height - at) / slope;
  const [low, high] = slope ? [leaves(0), leaves(height)].sort((a, b) => a - b) : [0, width];
  const within = (x) => Math.min(Math.min(width, high), Math.max(Math.max(0, low), x));
  const ends = { x1: within(0), y1: y(within(0)), x2: within(width), y2: y(within(width)) };
  const thick = Math.max(1, editor.value("thickness") * height) / Math.cos((tilt * Math.PI) / 180);
  const line = {
    key: "line",
    label: `Horizon at ${position.toFixed(2)}`,
    at: [0.5, position],
    parts: [
      svg("line", { ...ends, class: "dp-hit dp-ring", "stroke-width": thick + 10 }),
      svg("line", { ...ends, stroke: color, "stroke-width": thick }),
    ],
    move: (_, to) => editor.write("position", snap(to)),
  };
  const end = (key, side) => {
    const x = within(width * (0.5 + side * ENDS));
    const turn = (degrees) => editor.write("tilt", snap(degrees, -STEEPEST, STEEPEST, TILT_STEP));
    return {
      key,
      label: `Tilt ${tilt}°`,
      at: [x / width, y(x) / height],
      parts: knob(x, y(x), color),
      move(across, down) {
        const beside = Math.max(0.1, side * (across - 0.5)) * width;
        turn((Math.atan2(side * (position - down) * height, beside) * 180) / Math.PI);
      },
      step: (_, down, steps) => turn(tilt - side * down * steps * TILT_STEP),
    };
  };
  return [line, end("left", -1), end("right", 1)];
}

addEditor("DualProcessHorizonOverlay", {
  widgets: ["position", "tilt", "color", "thickness"],
  moved: ["position", "tilt"],
  hint: "Drag the line or its ends, or use arrow keys.",
  height: 230,
  items,
  create(editor, _, y) {
    editor.write("position", y);
    return "line";
  },
});
