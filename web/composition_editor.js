import { addEditor, contrast, element, knob, snap, svg } from "./overlay_editor.js";
import { addRow, changeRow, readRows, removeRow } from "./rows.js";

const SMALLEST = 0.02; // side of a region, length of a line; fractions
const NEW = [0.3, 0.2]; // size of what a click makes
const NUMBERS = { regions: 4, lines: 4, texts: 2 };
const TOOLS = { regions: ["▭", "region"], lines: ["╱", "line"], texts: ["T", "text"] };

/** A region, line or text by its key, such as "lines 0"; null if it is none. */
function find(editor, key) {
  const [kind, line] = key?.split(" ") ?? [];
  const row = kind in NUMBERS && readRows(editor.value(kind), NUMBERS[kind]).find((row) => row.line === Number(line));
  return row ? { kind, key: `${kind} ${line}`, ...row } : null;
}

const chosen = (editor) => find(editor, editor.chosen);

function change(editor, { kind, line }, numbers, text) {
  editor.write(kind, changeRow(editor.value(kind), line, numbers, text));
}

/** A handle of a shape's, at a place that it can be moved from. */
function handle(editor, shape, name, [x, y], move) {
  return {
    key: `${shape.key} ${name}`,
    label: `${shape.text || TOOLS[shape.kind][1]}: ${name}`,
    at: [x, y],
    parts: knob(x * editor.width, y * editor.height, editor.value("color"), 5),
    move,
    remove: () => remove(editor, shape),
  };
}

function remove(editor, { kind, line }) {
  editor.write(kind, removeRow(editor.value(kind), line));
  editor.surface.focus({ preventScroll: true });
}

function label(text, x, y, color, width) {
  const box = element("div", { className: "dp-label", textContent: text });
  box.style.color = color;
  box.style.setProperty("--dp-rim", contrast(color));
  return svg("foreignObject", { x: x - width / 2, y: y - 30, width, height: 60, class: "dp-still" }, [box]);
}

/** What stands for a shape: its parts in pixels, how it is moved as a whole, and its handles. */
const SHAPES = {
  regions(editor, shape, stroke) {
    const [x, y, w, h] = shape.numbers;
    const to = (numbers) => change(editor, shape, numbers.map((number) => snap(number)), shape.text);
    const box = { x: x * editor.width, y: y * editor.height, width: w * editor.width, height: h * editor.height };
    const middle = [box.x + box.width / 2, box.y + box.height / 2];
    return {
      parts: [
        svg("rect", { ...box, class: "dp-hit dp-ring" }),
        svg("rect", { ...box, ...stroke, class: "dp-still" }),
        label(shape.text, ...middle, stroke.stroke, box.width),
      ],
      move: (toX, toY) => to([snap(toX, 0, 1 - w), snap(toY, 0, 1 - h), w, h]),
      handles: [
        handle(editor, shape, "upper left corner", [x, y], (toX, toY) => {
          const [left, top] = [snap(toX, 0, x + w - SMALLEST), snap(toY, 0, y + h - SMALLEST)];
          to([left, top, x + w - left, y + h - top]);
        }),
        handle(editor, shape, "lower right corner", [x + w, y + h], (toX, toY) =>
          to([x, y, snap(toX - x, SMALLEST, 1 - x), snap(toY - y, SMALLEST, 1 - y)]),
        ),
      ],
    };
  },
  lines(editor, shape, stroke) {
    const [x1, y1, x2, y2] = shape.numbers;
    const to = (numbers) => {
      const longest = Math.max(Math.abs(numbers[2] - numbers[0]), Math.abs(numbers[3] - numbers[1]));
      if (longest >= SMALLEST) change(editor, shape, numbers, shape.text);
    };
    const { width, height } = editor;
    const ends = { x1: x1 * width, y1: y1 * height, x2: x2 * width, y2: y2 * height };
    const middle = [((x1 + x2) / 2) * width, ((y1 + y2) / 2) * height];
    const within = (by, a, b) => Math.min(1 - Math.max(a, b), Math.max(-Math.min(a, b), by));
    return {
      parts: [
        svg("line", { ...ends, class: "dp-hit dp-ring", "stroke-width": 14 }),
        svg("line", { ...ends, ...stroke, class: "dp-still" }),
        label(shape.text, middle[0], middle[1] + 12, stroke.stroke, 120),
      ],
      move(toX, toY) {
        const [dx, dy] = [within(toX - x1, x1, x2), within(toY - y1, y1, y2)];
        to([x1 + dx, y1 + dy, x2 + dx, y2 + dy].map((number) => snap(number)));
      },
      handles: [
        handle(editor, shape, "start", [x1, y1], (toX, toY) => to([snap(toX), snap(toY), x2, y2])),
        handle(editor, shape, "end", [x2, y2], (toX, toY) => to([x1, y1, snap(toX), snap(toY)])),
      ],
    };
  },
  texts(editor, shape, { stroke }) {
    const [x, y] = [shape.numbers[0] * editor.width, shape.numbers[1] * editor.height];
    const half = Math.max(12, 3.5 * shape.text.length);
    return {
      parts: [
        svg("rect", { x: x - half, y: y - 11, width: 2 * half, height: 22, rx: 3, class: "dp-hit dp-ring" }),
        label(shape.text, x, y, stroke, 160),
      ],
      move: (toX, toY) => change(editor, shape, [snap(toX), snap(toY)], shape.text),
      handles: [],
    };
  },
};

function items(editor) {
  const thickness = Math.max(1, editor.value("thickness") * Math.min(editor.width, editor.height));
  const stroke = { stroke: editor.value("color"), "stroke-width": thickness, fill: "none" };
  const area = ({ kind, numbers }) => (kind === "regions" ? numbers[2] * numbers[3] : 0);
  const shapes = Object.entries(NUMBERS).flatMap(([kind, count]) =>
    readRows(editor.value(kind), count).map((row) => ({ kind, key: `${kind} ${row.line}`, ...row })),
  );
  shapes.sort((a, b) => area(b) - area(a)); // the small ones can be reached
  const inHand = chosen(editor)?.key;
  return shapes.flatMap((shape) => {
    const { parts, move, handles } = SHAPES[shape.kind](editor, shape, stroke);
    const name = `${TOOLS[shape.kind][1]} ${shape.text}`.trim();
    const at = shape.numbers.slice(0, 2);
    const item = { key: shape.key, label: `${name} at ${at.join(", ")}`, at, parts, move };
    return [{ ...item, remove: () => remove(editor, shape) }, ...(shape.key === inHand ? handles : [])];
  });
}

/** Something of the kind that the tools say; what of it goes on with the mouse. */
function create(editor, x, y, kind = editor.tool) {
  const [left, top] = [Math.min(x, 1 - SMALLEST), Math.min(y, 1 - SMALLEST)];
  const [width, height] = [Math.min(NEW[0], 1 - left), Math.min(NEW[1], 1 - top)];
  const numbers = {
    regions: [left, top, width, height],
    lines: [left, top, left + width, top],
    texts: [x, y],
  }[kind].map((number) => snap(number));
  const typed = addRow(editor.value(kind), numbers, kind === "texts" ? "text" : "");
  editor.chosen = `${kind} ${typed.split("\n").length - 1}`;
  editor.write(kind, typed);
  return editor.chosen + { regions: " lower right corner", lines: " end", texts: "" }[kind];
}

function tools(editor) {
  editor.tool = "regions";
  const buttons = Object.entries(TOOLS).map(([kind, [sign, name]]) => {
    const button = element("button", { type: "button", textContent: sign, title: `Draw a ${name}` });
    button.dataset.tool = kind;
    button.onclick = ({ detail }) => {
      editor.tool = kind;
      // By a key: there is no mouse to draw with.
      if (detail === 0) editor.change(() => editor.focus(create(editor, 0.35, 0.4, kind)));
      else editor.draw();
    };
    return button;
  });
  const away = element("button", { type: "button", className: "dp-fewer", textContent: "−", title: "Remove what is chosen" });
  away.onclick = () => editor.change(() => remove(editor, chosen(editor)));
  return [...buttons, away];
}

function below(editor) {
  const input = element("input", { type: "text", className: "dp-text", ariaLabel: "Text of what is chosen" });
  input.oninput = () => {
    const shape = chosen(editor);
    if (shape) change(editor, shape, shape.numbers, input.value);
  };
  input.onkeydown = (event) => {
    event.stopPropagation(); // it is typed, no command to ComfyUI
    if (["Enter", "Escape"].includes(event.key)) editor.focus(chosen(editor)?.key);
  };
  return [input];
}

function update(editor) {
  const shape = chosen(editor);
  for (const button of editor.root.querySelectorAll("[data-tool]")) {
    button.disabled = editor.locked;
    button.setAttribute("aria-pressed", button.dataset.tool === editor.tool);
  }
  editor.find(".dp-fewer").disabled = editor.locked || !shape;
  const input = editor.find(".dp-text");
  input.disabled = editor.locked || !shape;
  input.placeholder = shape ? "What is it?" : "Choose something to write its text";
  if (input !== document.activeElement) input.value = shape?.text ?? "";
}

addEditor("DualProcessComposition", {
  widgets: ["regions", "lines", "texts", "color", "thickness"],
  moved: ["regions", "lines", "texts"],
  hint: "Choose ▭, ╱ or T and draw. Arrow keys move what is chosen, with Shift farther, Delete removes it.",
  height: 350,
  items,
  create,
  created: (editor) => editor.find(".dp-text").select(),
  tools,
  below,
  update,
});
