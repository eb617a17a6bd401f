"""Tiny collaborators of the engine whose every number can be computed by hand."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from dual_process.core.protocols import AS_GENERATOR
from dual_process.distillation import Draw, Estimate, ModelInfo, Question, Recipe

SIZE = 4  # pixels per side
NOISE = 6  # numbers of noise per sample


class FakeGenerator:
    """image = ½ + ¼ · (W + α/r · B·A)·(z + prompt), unclamped: linear, so that gradients are easy.

    With a slider at t there is α/r · t · B'·A' besides.
    """

    keeps_graph = False

    def __init__(self, prompts=("sea", "sand"), sha="0" * 64):
        self.prompts = list(prompts)
        random = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(3 * SIZE * SIZE, NOISE, generator=random) * 0.3)
        self.shift = torch.randn(len(self.prompts), NOISE, generator=random)
        self.info = ModelInfo("fake", "fake-flow", "float32", sha)
        self.num_inference_steps = 3
        self.poison_seed_at: int | None = None  # the estimate from which on pictures are NaN
        self.estimates = 0
        self.draws = []
        self.add_lora(1, 1.0, 0)  # zero B: it does nothing

    @property
    def num_prompts(self):
        return len(self.prompts)

    def add_lora(self, rank, alpha, seed, targets="attention", slider=False):
        random = torch.Generator().manual_seed(seed)
        self.scale = alpha / rank
        self.a = nn.Parameter(torch.randn(rank, NOISE, generator=random) / rank)
        self.b = nn.Parameter(torch.zeros(len(self.weight), rank))
        self.slider = None
        if slider:
            self.slider = (
                nn.Parameter(torch.randn(rank, NOISE, generator=random) / rank),
                nn.Parameter(torch.zeros(len(self.weight), rank)),
            )

    def lora_parameters(self):
        if self.slider is None:
            return {"layer.lora_A": self.a, "layer.lora_B": self.b}
        a, b = self.slider
        return {"layer.lora_A": self.a, "layer.lora_B": self.b, "slider.layer.lora_A": a, "slider.layer.lora_B": b}

    @contextmanager
    def training(self, in_turns=False):
        self.weight.requires_grad_(False)
        try:
            yield
        finally:
            self.weight.requires_grad_(True)

    def _predict(self, draw, scale):
        noise = torch.stack([torch.randn(NOISE, generator=torch.Generator().manual_seed(s)) for s in draw.noise_seeds])
        z = noise + self.shift[list(draw.prompt_indices)]
        change = self.b @ self.a
        if self.slider is not None:
            change = change + (draw.sampling.slider or 0.0) * self.slider[1] @ self.slider[0]
        return 0.25 * z @ (self.weight + scale * change).T

    def estimate(self, draw, needs=("image", "prediction")):
        self.draws.append(draw)
        prediction = self._predict(draw, self.scale)
        if self.poison_seed_at is not None and self.estimates >= self.poison_seed_at:
            prediction = prediction * torch.nan
        self.estimates += 1
        base = self._predict(draw, 0.0).detach()
        found = Estimate(self._picture(prediction), prediction, self._picture(base), base)
        return Estimate(**{name: found.get(name) for name in needs})

    @staticmethod
    def _picture(prediction):
        return (prediction + 0.5).unflatten(1, (3, SIZE, SIZE))

    @torch.no_grad()
    def sample(self, prompt_indices, seeds, num_inference_steps=None, lora_scale=1.0, *, sampling=AS_GENERATOR):
        draw = Draw(tuple(prompt_indices), tuple(seeds), (0,) * len(seeds), sampling)
        return self._picture(self._predict(draw, lora_scale * self.scale)).clamp(0, 1)

    def lora_state_dict(self, format="diffusers", slider=False):
        a, b = self.slider if slider else (self.a, self.b)
        alpha = torch.tensor(self.scale * len(a))
        return {"layer.lora_A": a.detach(), "layer.lora_B": b.detach(), "layer.alpha": alpha}


class FakeCritic:
    """log P = log σ(w·image), one fixed direction w for each question's text."""

    def __init__(self, name="fake", nan_at: int | None = None):
        self.info = ModelInfo(name, "fake-vlm", "float32", "1" * 64)
        self.calls = []
        self.nan_at = nan_at

    @staticmethod
    def direction(text):
        return torch.randn(3 * SIZE * SIZE, generator=torch.Generator().manual_seed(sum(text.encode())))

    def answer(self, images, text, max_new_tokens=16):
        return ["Yes" if score > 0 else "No" for score in images.flatten(1) @ self.direction(text)]

    def log_likelihood(self, images, questions):
        self.calls.append([q.text for q in questions])
        scores = [F.logsigmoid(images.flatten(1) @ self.direction(q.text)) for q in questions]
        result = torch.stack(scores, dim=1)
        return result * torch.nan if self.nan_at is not None and len(self.calls) > self.nan_at else result


def recipe(*questions, **changes):
    """A short recipe that learns something; two samples a step."""
    settings = {"train_steps": 6, "learning_rate": 0.01, "rank": 2, "lora_alpha": 4.0, "batch_size": 2}
    return Recipe(questions=questions or (Question("Is it?"),), **{**settings, **changes})
