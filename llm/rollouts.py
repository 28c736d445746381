"""Rollouts: prompts, the responses sampled to them, their rewards, and what stays fixed about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from entropy_theory.control import Control, Need
from llm.config import TrainConfig
from llm.forward import Reading, activation, forward
from llm.models import LanguageModel
from llm.prompts import encode_prompts
from llm.ranks import ALONE, Ranks
from llm.responses import Responses
from llm.samplers import Sampler, make_sampler, rollout_uniforms
from llm.tasks import Task
from llm.update import micro_batches

FAILURES = {
    "timeout": "reward_timeouts",
    "crash": "reward_crashes",
    "error": "reward_errors",
    "nan": "reward_nans",
}
"""Metric that counts each kind of failed check; see `llm.tasks.Scores`."""


@dataclass(frozen=True)
class Rollout:
    """Responses and what stays fixed about them until the next rollout.

    old_logp:    [rows, tokens], nats, of the policy that sampled, at `temperature`; None as long as a rollout with one
                 update waits for it, whose own forward pass is that of the policy that sampled
    reward:      [rows], in [0, 1]
    difficulty:  [rows] int64
    temperature: of the sampling distribution
    ref_logp:    [rows, tokens], nats, of the model as it was loaded, at `temperature`; None unless needed
    proxy_logp:  [rows, tokens], nats, of the filtered policy that sampled, -inf where filtered out; None unless needed
    process:     [rows, tokens], reward units, of the process reward model; None without one
    batches:     of prompts that were drawn for it; more than one only under dynamic sampling
    counts:      what is logged of the drawing, by metric
    kind:        [rows] int64, of the response (`llm.task.Task.kinds`), -1 for none; None as if all were
    """

    responses: Responses
    old_logp: Tensor | None
    reward: Tensor
    difficulty: Tensor
    temperature: float
    ref_logp: Tensor | None = None
    proxy_logp: Tensor | None = None
    process: Tensor | None = None
    batches: int = 1
    counts: dict[str, float] | None = None
    kind: Tensor | None = None

    def to_state(self) -> dict[str, Any]:
        """The rollout as dicts, numbers and its own tensors."""
        return {**_fields(self), "responses": _fields(self.responses)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Rollout:
        """What `to_state` was made of."""
        return cls(**{**state, "responses": Responses(**state["responses"])})


class Answers(NamedTuple):
    """Scored responses to a batch of prompts, the rows of one prompt next to each other.

    reward, difficulty, kind: [rows]; failures: checks that failed, by kind of failure.
    """

    responses: Responses
    reward: Tensor
    difficulty: Tensor
    kind: Tensor
    failures: dict[str, int]


def make_rollout(
    lm: LanguageModel,
    task: Task,
    config: TrainConfig,
    seed: int,
    position: int,
    step: int,
    temperature: float,
    control: Control,
    reference: LanguageModel | None = None,
    sampler: Sampler | None = None,
    ranks: Ranks = ALONE,
) -> Rollout:
    """Sample and reward responses, from batch `position` of the prompts on.

    `old_logp` comes from the `forward` of training, not from sampling: the two differ by rounding
    (logged as sampling_mismatch), which is no step of the policy.

    Args:
      step: of the optimizer, for messages; sampler: that of `config` unless given.
      ranks: the processes, each of which answers some of the prompts; all of them get the whole rollout.
    Raises: ValueError for NaN in the logits, naming the step.
    """
    sampler = sampler or make_sampler(config.sampler, lm)

    def draw(batch: int) -> Answers:
        return answer(lm, task, sampler, config, seed, batch, step, temperature, control, ranks)

    answers, counts = collect(draw, config, position, lm.pad)
    read = (answers.responses, config, temperature, control, ranks)
    old_logp, proxy_logp = None, None
    if config.updates_per_rollout > 1 or Need.PROXY_LOGP in control.needs:
        old_logp, proxy_logp = sampling_logp(lm, *read)
    ref_logp = reference_logp(reference, *read) if Need.REF_LOGP in control.needs else None
    return Rollout(
        responses=answers.responses,
        old_logp=old_logp,
        reward=answers.reward,
        difficulty=answers.difficulty,
        temperature=temperature,
        ref_logp=ref_logp,
        proxy_logp=proxy_logp,
        batches=int(counts.get("dynamic_batches", 1)),
        counts=counts,
        kind=answers.kind,
    )


def answer(
    lm: LanguageModel,
    task: Task,
    sampler: Sampler,
    config: TrainConfig,
    seed: int,
    position: int,
    step: int,
    temperature: float,
    control: Control,
    ranks: Ranks = ALONE,
) -> Answers:
    """Responses to batch `position` of the prompts, a function of the weights, the seed and the position."""
    prompts = task.make_prompts(config.prompts_per_rollout, seed, position)
    device, steps = lm.model.device, config.max_new_tokens
    count, size = len(prompts), config.group_size
    difficulty = torch.tensor([prompt.difficulty for prompt in prompts], device=device).repeat_interleave(size)
    numbers = rollout_uniforms(seed, position, count * size, steps, device).view(count, size * steps)
    prompts, uniforms = ranks.own(prompts), ranks.own(numbers).view(-1, steps)
    encoded = encode_prompts(lm, task, config, prompts)
    try:
        responses = sampler.sample(encoded, config.group_size, steps, temperature, uniforms, activation(control))
    except FloatingPointError as error:
        raise ValueError(not_finite(str(error), step)) from None
    texts = lm.tokenizer.batch_decode(responses.tokens, skip_special_tokens=True)
    once = ranks.counted(count) * size  # a prompt that another process answers too is not scored twice
    rows = [prompt for prompt in prompts for _ in range(size)]
    scores = task.score(rows[:once], texts[:once], responses.finished.tolist()[:once])
    reward = torch.tensor([*scores.reward, *[0.0] * (len(rows) - once)], device=device)
    check_finite(reward, "rewards", step)
    kind = torch.tensor([task.kind(text) for text in texts], device=device)
    failures = ranks.gather(scores.failures)
    return Answers(
        ranks.gather_responses(responses, count * size),
        ranks.gather_rows(reward, count * size),
        difficulty,
        ranks.gather_rows(kind, count * size),
        {name: sum(part[name] for part in failures) for name in scores.failures},
    )


# --- dynamic sampling -------------------------------------------------------------------------------------------------


def collect(
    draw: Callable[[int], Answers], config: TrainConfig, position: int, pad: int
) -> tuple[Answers, dict[str, float]]:
    """One rollout's answers, and what is logged of their drawing.

    Without dynamic sampling they are those of one batch. With it (DAPO, 2503.14476; the recipe of 2505.22617) batches
    are drawn until there are `prompts_per_rollout` groups whose rewards differ, or `dynamic_tries` batches. The first
    such groups are taken; where there are too few, the first others fill them up, so that shapes stay what they are.
    Groups keep the order in which they were drawn.

    Returns: counts of failed checks in all that was drawn; under dynamic sampling also dynamic_batches drawn,
      dropped_groups (drawn whose responses all earned the same), filled_groups (of these, in the rollout
      nevertheless), and drawn_reward, the mean over all that was drawn: that of the rollout is of chosen groups.
    """
    drawn = [draw(position)]
    if not config.dynamic_sampling:
        return drawn[0], count_failures(drawn)
    wanted = config.prompts_per_rollout
    while len(drawn) < config.dynamic_tries and _with_signal(drawn, config) < wanted:
        drawn.append(draw(position + len(drawn)))
    everything = join(drawn, pad)
    signal = has_signal(everything.reward, config.group_size)
    chosen = torch.argsort((~signal).byte(), stable=True)[:wanted].sort().values
    counts = {
        **count_failures(drawn),
        "dynamic_batches": len(drawn),
        "dropped_groups": int((~signal).sum()),
        "filled_groups": int((~signal[chosen]).sum()),
        "drawn_reward": everything.reward.mean().item(),
    }
    return take_groups(everything, chosen, config.group_size), counts


def has_signal(reward: Tensor, group_size: int) -> Tensor:
    """Whether the rewards of a group differ, bool [groups]; reward: [rows]."""
    groups = reward.view(-1, group_size)
    return (groups != groups[:, :1]).any(-1)


def take_groups(answers: Answers, groups: Tensor, group_size: int) -> Answers:
    """The answers of some groups, [groups] int64, in this order."""
    rows = (groups.unsqueeze(-1) * group_size + torch.arange(group_size, device=groups.device)).flatten()
    return answers._replace(
        responses=answers.responses[rows],
        reward=answers.reward[rows],
        difficulty=answers.difficulty[rows],
        kind=answers.kind[rows],
    )


def join(answers: Sequence[Answers], pad: int) -> Answers:
    """Answers to several batches as one; prompts are padded on the left to the longest with token `pad`."""
    width = max(part.responses.prompt.shape[1] for part in answers)
    parts = [_widen(part.responses, width, pad) for part in answers]
    columns = {f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Responses)}
    return Answers(
        Responses(**columns),
        torch.cat([part.reward for part in answers]),
        torch.cat([part.difficulty for part in answers]),
        torch.cat([part.kind for part in answers]),
        {kind: sum(part.failures[kind] for part in answers) for kind in answers[0].failures},
    )


def count_failures(drawn: Sequence[Answers]) -> dict[str, float]:
    """Checks of responses that failed, by metric; a zero where none did."""
    return {metric: sum(part.failures.get(kind, 0) for part in drawn) for kind, metric in FAILURES.items()}


def _with_signal(drawn: Sequence[Answers], config: TrainConfig) -> int:
    return sum(int(has_signal(part.reward, config.group_size).sum()) for part in drawn)


def _widen(responses: Responses, width: int, pad: int) -> Responses:
    missing = width - responses.prompt.shape[1]
    return replace(responses, prompt=torch.nn.functional.pad(responses.prompt, (missing, 0), value=pad))


# --- log-probabilities ------------------------------------------------------------------------------------------------


@torch.no_grad()
def sampling_logp(
    lm: LanguageModel,
    responses: Responses,
    config: TrainConfig,
    temperature: float,
    control: Control,
    ranks: Ranks = ALONE,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of the tokens under the policy that sampled, and under its filtered one where it is needed."""
    reading = Reading.of(control, temperature, proxy=True, chunk=config.token_chunk or None)._replace(support=None)
    return _read(lm, responses, reading, config.micro_batch_rows, ranks)


@torch.no_grad()
def reference_logp(
    reference: LanguageModel,
    responses: Responses,
    config: TrainConfig,
    temperature: float,
    control: Control,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Log-probabilities of the tokens under the policy of the model as it was loaded, [rows, tokens], nats.

    Cut as the updates are: rounding depends on the shape of a batch, and at the start the two policies are one.
    """
    reading = Reading.of(control, temperature, chunk=config.token_chunk or None)._replace(support=None)
    updates = micro_batches(len(responses), config.rows_per_update)
    return torch.cat([_read(reference, responses[u], reading, config.micro_batch_rows, ranks)[0] for u in updates])


def _read(
    lm: LanguageModel, responses: Responses, reading: Reading, size: int, ranks: Ranks
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities under the policy and its filtered one, of all rows; each process reads its own in pieces."""
    own = ranks.own(responses)
    found = [forward(lm, own[piece], reading) for piece in micro_batches(len(own), size)]
    logp = ranks.gather_rows(torch.cat([piece.logp for piece in found]), len(responses))
    if reading.proxy is None:
        return logp, None
    return logp, ranks.gather_rows(torch.cat([piece.proxy_logp for piece in found]), len(responses))


# --- errors -----------------------------------------------------------------------------------------------------------


def check_finite(values: Tensor, what: str, step: int) -> None:
    """Raise ValueError that names the step unless all values are finite."""
    if not torch.isfinite(values).all():
        raise ValueError(not_finite(f"NaN or infinity in {what}", step))


def not_finite(what: str, step: int) -> str:
    """The message: what happened at which optimizer step, and what to do."""
    return f"{what} at step {step + 1}; the last completed step is saved, start anew with a smaller lr"


def _fields(record: Any) -> dict[str, Any]:
    return {f.name: getattr(record, f.name) for f in fields(record)}
