// What an overlay is drawn over while it is edited: the picture that is connected, or the last one of the training.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { lastPicture } from "./distill_view.js";

const SEEN = "dual_process_backdrop"; // the node's property that names the picture of its last run

function view(file) {
  return api.apiURL(`/view?${new URLSearchParams(file)}`);
}

/** What a node has shown since the page was opened. */
function output({ graph, id }) {
  return app.nodeOutputs[graph === graph.rootGraph ? id : `${graph.id}:${id}`];
}

/** The picture that is connected to a node: as the node before shows it, or as it was in the last run. */
function connected(node) {
  const slot = node.inputs.findIndex(({ name }) => name === "image");
  if (node.inputs[slot]?.link == null) return null;
  const source = node.getInputNode(slot);
  const before = source && output(source)?.images?.[0]; // such as Load Image's, without a run
  if (before) return view(before);
  const seen = output(node)?.[SEEN]?.[0];
  if (seen) node.properties[SEEN] = seen; // for the next time that the page is opened
  return node.properties[SEEN] ? view(node.properties[SEEN]) : null;
}

/** The last picture of the training that a node leads to. */
function trained(node) {
  const found = new Set([node]);
  for (const one of found) {
    const picture = lastPicture(one);
    if (picture) return picture;
    one.outputs.forEach((_, slot) => one.getOutputNodes(slot)?.forEach((next) => found.add(next)));
  }
  return null;
}

/** The address of the picture for a node's editor, null if there is none. */
export function backdrop(node) {
  return connected(node) ?? trained(node);
}
