// ComfyUI tells of an error in words of its own and keeps the sentence behind a click. Here it stands in a toast and on
// the face of the node that it is about, until the next run.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const PREFIX = "DualProcess";
const shown = []; // what to take away again

/** The node of an id such as "7", or "3:7" where it is in a subgraph; null in a tab with another graph. */
export function find(id, type) {
  const node = String(id)
    .split(":")
    .reduce((found, part) => (found?.subgraph ?? found)?.getNodeById?.(part), app.rootGraph ?? app.graph);
  return node?.comfyClass === type ? node : null;
}

function show(node, sentence) {
  const toast = { severity: "error", summary: node.title, detail: sentence, life: 20000 };
  app.extensionManager.toast.add(toast);
  shown.push(() => app.extensionManager.toast.remove(toast));
  if (node.widgets?.some((widget) => widget.element?.textContent.includes(sentence))) return; // its view says so
  const text = document.createElement("div");
  text.className = "dp-error";
  text.setAttribute("role", "alert");
  text.textContent = sentence;
  const size = [...node.size];
  const widget = node.addDOMWidget("error", "dual_process_error", text, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => 20 + 18 * Math.ceil(sentence.length / (size[0] / 7)),
  });
  widget.serialize = false; // widget values are saved by position: ours is none
  node.setSize([size[0], Math.max(size[1], node.computeSize()[1])]);
  shown.push(() => {
    if (!node.widgets.includes(widget)) return;
    node.removeWidget(widget);
    node.setSize(size);
  });
}

function clear() {
  while (shown.length) shown.pop()();
}

app.registerExtension({
  name: "DualProcess.Errors",
  setup() {
    api.addEventListener("promptQueueing", clear);
    const listen = (event, type) =>
      api.addEventListener(event, ({ detail }) => {
        const node = detail[type]?.startsWith(PREFIX) && find(detail.node_id, detail[type]);
        if (node) show(node, (detail.message ?? detail.exception_message).trim());
      });
    listen("execution_error", "node_type");
    listen("dual_process.refused", "type");
  },
});
