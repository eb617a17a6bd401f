import { addEditor, contrast, element, snap, svg } from "./overlay_editor.js";
import { addRow, changeRow, readRows, removeRow } from "./rows.js";

const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const FEWEST = 2;
const LEAST_RADIUS = 6.5; // pixels

const points = (editor) => readRows(editor.value("points"), 2);

/** Whether a dot at a place would lie on no other one. */
function isFree(editor, x, y, but) {
  const apart = 2 * editor.value("radius");
  return points(editor).every(({ numbers }, i) => i === but || Math.hypot(numbers[0] - x, numbers[1] - y) >= apart);
}

/** The letters from the nearest to the farthest. */
function order(editor) {
  const letters = LETTERS.slice(0, points(editor).length);
  const typed = editor.value("order").trim().toUpperCase();
  return [...typed].sort().join("") === letters ? typed : letters;
}

function writeOrder(editor, letters) {
  editor.write("order", letters === [...letters].sort().join("") ? "" : letters);
}

function add(editor, x, y) {
  const count = points(editor).length;
  if (count === LETTERS.length || !isFree(editor, x, y)) return null;
  const letters = order(editor) + LETTERS[count];
  editor.write("points", addRow(editor.value("points"), [x, y]));
  writeOrder(editor, letters);
  return LETTERS[count];
}

/** Those behind it move up by a letter. */
function remove(editor, index) {
  if (points(editor).length <= FEWEST) return;
  const gone = LETTERS[index];
  const rest = [...order(editor)].filter((letter) => letter !== gone);
  const letters = rest.map((letter) => (letter > gone ? LETTERS[LETTERS.indexOf(letter) - 1] : letter)).join("");
  editor.write("points", removeRow(editor.value("points"), points(editor)[index].line));
  writeOrder(editor, letters);
  editor.focus(LETTERS[Math.min(index, letters.length - 1)]);
}

function addAnywhere(editor) {
  const tenths = [5, 3, 7, 1, 9].map((tenth) => tenth / 10);
  const [place] = tenths.flatMap((y) => tenths.map((x) => [x, y])).filter(([x, y]) => isFree(editor, x, y));
  if (place) editor.focus(add(editor, ...place));
}

function items(editor) {
  const { width, height } = editor;
  const color = editor.value("color");
  const radius = Math.max(LEAST_RADIUS, editor.value("radius") * Math.min(width, height));
  return points(editor).slice(0, LETTERS.length).map(({ line, numbers: [x, y] }, i) => {
    const [cx, cy] = [x * width, y * height];
    const letter = { x: cx, y: cy, fill: contrast(color), "font-size": 1.4 * radius, class: "dp-letter" };
    return {
      key: LETTERS[i],
      label: `Point ${LETTERS[i]} at ${x}, ${y}`,
      at: [x, y],
      parts: [
        svg("circle", { cx, cy, r: radius + 5, class: "dp-hit dp-ring" }),
        svg("circle", { cx, cy, r: radius, fill: color, class: "dp-knob" }),
        svg("text", letter, [LETTERS[i]]),
      ],
      move(toX, toY) {
        const place = [snap(toX), snap(toY)];
        if (isFree(editor, ...place, i)) editor.write("points", changeRow(editor.value("points"), line, place));
      },
      remove: () => remove(editor, i),
    };
  });
}

addEditor("DualProcessDepthPoints", {
  widgets: ["points", "color", "radius", "order"],
  moved: ["points"],
  hint: "Drag points, or click to add one. Arrow keys move the chosen one, with Shift farther, Delete removes it.",
  height: 340,
  items,
  create: add,
  tools(editor) {
    const fewer = { className: "dp-fewer", textContent: "−", title: "Remove the chosen point, or the last" };
    const more = { className: "dp-more", textContent: "+", title: "Add a point" };
    fewer.onclick = () => {
      const chosen = editor.items.has(editor.chosen) ? LETTERS.indexOf(editor.chosen) : points(editor).length - 1;
      editor.change(() => remove(editor, chosen));
    };
    more.onclick = () => editor.change(() => addAnywhere(editor));
    return [fewer, more].map((properties) => element("button", { type: "button", ...properties }));
  },
  below: () => [element("div", { className: "dp-order", role: "group", ariaLabel: "Order, the nearest first" })],
  update(editor) {
    const count = points(editor).length;
    editor.find(".dp-fewer").disabled = editor.locked || count <= FEWEST;
    editor.find(".dp-more").disabled = editor.locked || count >= LETTERS.length;
    const box = editor.find(".dp-order");
    const letters = order(editor);
    if (box.dataset.order === letters) return;
    box.dataset.order = letters;
    const focused = box.contains(document.activeElement) && document.activeElement.textContent;
    const buttons = [...letters].map((letter) => {
      const button = element("button", { type: "button", textContent: letter, title: `Point ${letter} is the nearest` });
      button.onclick = () => editor.change(() => writeOrder(editor, letter + letters.replace(letter, "")));
      return button;
    });
    const between = buttons.flatMap((button, i) => (i ? ["›", button] : [button]));
    box.replaceChildren("Nearest first:", ...between);
    buttons.find((button) => button.textContent === focused)?.focus();
  },
});
