import { app } from "../../scripts/app.js";

// The menu after dragging from an output suggests the nodes that need such an input. These of ours can do without, to
// say themselves what is missing.
const FIRST = {
  LORA_MODEL: ["DualProcessSaveDistilledLoRA"],
  DUAL_PROCESS_OVERLAY: ["DualProcessVLMQuestion"],
  DUAL_PROCESS_QUESTION: ["DualProcessVQALoss"],
  DUAL_PROCESS_CHECKPOINT: ["DualProcessDistill"],
};

app.registerExtension({
  name: "DualProcess.Suggestions",
  setup() {
    const suggested = LiteGraph.slot_types_default_out;
    for (const [type, nodes] of Object.entries(FIRST)) {
      suggested[type] = [...nodes, ...(suggested[type] ?? []).filter((node) => !nodes.includes(node))];
    }
  },
});
