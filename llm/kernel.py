"""How far Theorem 1 is from a language model: one GRPO step of the tiny Qwen2 on the tokens of its own rollout.

Everything is float64 and plain gradient ascent, so that what separates prediction and measurement is the theorem's
table of logits and nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from entropy_theory import kernel
from entropy_theory.advantage import grpo
from entropy_theory.kernel import KernelStep, Policy
from entropy_theory.tables import replace_rows
from llm.config import TrainConfig
from llm.grpo import build_control, make_rollout
from llm.models import LanguageModel, load_model
from llm.rollout import Responses, forward
from llm.tasks import get_task

SPREAD = 0.05
"""Largest spread of a token's logit change in the step that is taken, nats: first order explains such a step."""

PROMPTS = 8
"""Prompts of the rollout; with 8 responses each, about 300 tokens."""


class Problem(NamedTuple):
    """A policy at fixed states: parameters -> logits [tokens, vocabulary], its parameters, A and d [tokens]."""

    policy: Policy
    parameters: dict[str, Tensor]
    advantage: Tensor
    weight: Tensor


class _Forward(torch.nn.Module):
    """The forward pass of training as a module, so that it can be called with other parameters."""

    def __init__(self, lm: LanguageModel):
        super().__init__()
        self.model = lm.model
        self.lm = lm

    def forward(self, responses: Responses) -> Tensor:
        return forward(self.lm, responses, 1.0).logits


def in_float64(lm: LanguageModel) -> LanguageModel:
    """The model with norms that keep float64: transformers' own compute in float32, whose rounding (1e-7) would be
    larger than the error of the prediction. In place."""
    for name, module in list(lm.model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            norm = torch.nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon, dtype=module.weight.dtype)
            norm.weight = module.weight
            parent, _, last = name.rpartition(".")
            setattr(lm.model.get_submodule(parent), last, norm)
    return lm


def problem(seed: int = 0, prompts: int = PROMPTS, model: str = "tiny") -> Problem:
    """The model at the tokens of a rollout of the default settings (8 responses a prompt), with GRPO's advantages.

    J is the mean over tokens, as the loss of training at ratio 1.

    Args:
      seed: of prompts and sampling; model: "tiny" or the directory of another small one.
    Raises: ValueError if no group has both right and wrong responses, so that every advantage is 0.
    """
    config = TrainConfig(model=model, dtype="float64", device="cpu", prompts_per_rollout=prompts, updates_per_rollout=2)
    lm = in_float64(load_model(model, config.dtype))
    rollout = make_rollout(lm, get_task(config.task), config, seed, 0, 0, 1.0, build_control(config))
    responses, reward = rollout.responses, rollout.reward.double()
    advantage = grpo(reward, torch.arange(len(reward)) // config.group_size)
    if not advantage.any():
        raise ValueError(
            f"all responses to a prompt earned the same with seed {seed}; take another seed or more prompts"
        )
    rows, steps = responses.mask.nonzero(as_tuple=True)
    module = _Forward(lm)

    def policy(parameters):
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention has no second derivative
            return functional_call(module, {f"model.{name}": p for name, p in parameters.items()}, (responses,))

    parameters = {name: parameter.detach() for name, parameter in lm.model.named_parameters()}
    with torch.no_grad():
        logits = policy(parameters)
    given = kernel.sampled_advantage(logits, responses.tokens[rows, steps], advantage[rows])
    return Problem(policy, parameters, given, torch.full((len(rows),), 1 / len(rows), dtype=torch.float64))


def kernel_step(seed: int = 0, spread: float = SPREAD) -> KernelStep:
    """One gradient step of the shipped tiny model on its own rollout.

    Args:
      seed: of prompts and sampling; spread: of the largest logit change, nats, which sets the step size.
    """
    return kernel.kernel_step_of_spread(*problem(seed), spread)


def write_tables(out: Path, seeds: int = 5) -> None:
    """Write the language model's rows of kernel.csv (one seed's tokens) and kernel_summary.csv into `out`."""
    states, summary = [], []
    for seed in range(seeds):
        place = {"world": "llm", "rollouts": 0, "seed": seed}
        for spread in (SPREAD, 0.3):
            step = kernel_step(seed, spread)
            summary += kernel.summary_rows(step, place | {"spread": spread})
            if seed == 0 and spread == SPREAD:
                states = kernel.state_rows(step, place)
    replace_rows(out / "kernel.csv", states)
    replace_rows(out / "kernel_summary.csv", summary)
