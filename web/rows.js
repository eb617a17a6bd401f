// Rows such as "0.1, 0.2: sky" in a text widget, as nodes/annotations.py reads them.

/** The rows with `count` numbers, each with the line that it stands in; other lines are passed over. */
export function readRows(typed, count) {
  return typed.split("\n").flatMap((row, line) => {
    const [places, ...text] = row.split(":");
    const numbers = places.split(",").map((part) => (part.trim() ? Number(part) : NaN));
    if (numbers.length !== count || !numbers.every(Number.isFinite)) return [];
    return [{ line, numbers, text: text.join(":").trim() }];
  });
}

/** The text with another row in a line; all other lines stay as they are. */
export function changeRow(typed, line, numbers, text = "") {
  return typed.split("\n").with(line, makeRow(numbers, text)).join("\n");
}

/** The text with a row at its end. */
export function addRow(typed, numbers, text = "") {
  return [...(typed.trim() ? typed.trimEnd().split("\n") : []), makeRow(numbers, text)].join("\n");
}

export function removeRow(typed, line) {
  return typed.split("\n").toSpliced(line, 1).join("\n");
}

function makeRow(numbers, text) {
  return numbers.join(", ") + (text ? `: ${text}` : "");
}
