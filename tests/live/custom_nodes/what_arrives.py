"""For tests: which prompts and questions arrive at a node, by fingerprints of the prompts' encodings."""

import json


class WhatArrives:
    RETURN_TYPES = ()
    FUNCTION = "tell"
    OUTPUT_NODE = True
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"optional": {"prompts": ("DUAL_PROCESS_PROMPTS",), "loss": ("DUAL_PROCESS_LOSS",)}}

    def tell(self, prompts=None, loss=None):
        found = {
            "prompts": [round(float(c[0][0].double().square().sum()), 3) for c in prompts.conditionings],
            "questions": [] if loss is None else [question.text for _, asked in loss.terms for question in asked],
        }
        return {"ui": {"text": [json.dumps(found)]}}


NODE_CLASS_MAPPINGS = {"TestWhatArrives": WhatArrives}
