"""Entropy change of an update on fixed tokens, measured and predicted."""

from __future__ import annotations

import torch
from torch import Tensor

from entropy_theory.softmax import entropy
from entropy_theory.theorems import entropy_change_first_order, entropy_change_second_order
from llm.config import TrainConfig
from llm.models import LanguageModel
from llm.rollout import Activation, forward, sample
from llm.tasks import Task

PROBE_POSITION = 2**31 - 1
"""Prompt position of the probe, beyond any rollout's."""


class Probe:
    """Responses of the initial policy, read again before and after an update.

    Fixing the tokens freezes the states, which Lemma 1 presumes; it says nothing of how an update moves the
    distribution over states. Every run of one seed and model has the same probe, whatever its control.
    """

    def __init__(
        self, lm: LanguageModel, task: Task, config: TrainConfig, seed: int, activate: Activation
    ):
        self.every = config.probe_every
        self.temperature = config.temperature
        self.micro_batch_rows = config.micro_batch_rows
        self.activate = activate
        self.last: tuple[int, list[Tensor]] | None = None
        if self.every:
            prompts = task.make_prompts(config.probe_responses // 4, seed, PROBE_POSITION)
            generator = torch.Generator(lm.model.device).manual_seed(seed)
            self.responses = sample(
                lm, [p.text for p in prompts], 4, config.max_new_tokens, self.temperature, generator
            )

    def before(self, lm: LanguageModel, step: int) -> list[Tensor] | None:
        """Logits before update `step`, or None where this update is not measured."""
        if not self.every or step % self.every:
            return None
        return self.last[1] if self.last and self.last[0] == step else self.logits(lm)

    @torch.no_grad()
    def logits(self, lm: LanguageModel) -> list[Tensor]:
        """Logits of the policy at the probe's tokens, one [tokens, vocabulary] per micro-batch."""
        return [
            forward(lm, self.responses[i : i + self.micro_batch_rows], self.temperature, self.activate).logits
            for i in range(0, len(self.responses), self.micro_batch_rows)
        ]

    def change(self, lm: LanguageModel, step: int, before: list[Tensor] | None) -> dict[str, float]:
        """Token means over the probe of the entropy change of the update just made, in nats.

        Measured, and predicted by Lemma 1 from the measured logit change to first and second order; in
        float64, because the change is a small difference of large numbers.
        """
        if before is None:
            return {}
        after = self.logits(lm)
        self.last = (step + 1, after)
        values = torch.cat([_change(b.double(), a.double()) for b, a in zip(before, after, strict=True)], -1)
        names = ("probe_entropy", "measured_entropy_change", "predicted_entropy_change_first_order",
                 "predicted_entropy_change_second_order")
        return dict(zip(names, values.mean(-1).tolist(), strict=True))


def _change(before: Tensor, after: Tensor) -> Tensor:
    """[4, tokens]: entropy before, its change, and the two predictions of the change."""
    step = after - before
    return torch.stack(
        [
            entropy(before),
            entropy(after) - entropy(before),
            entropy_change_first_order(before, step),
            entropy_change_second_order(before, step),
        ]
    )
