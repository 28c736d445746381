"""GRPO on a language model: one loop, read from top to bottom."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from entropy_theory import controls
from entropy_theory.advantage import ADVANTAGES
from entropy_theory.control import Control, Need, check_needs
from entropy_theory.loss import minibatch_loss, token_loss
from entropy_theory.records import Batch, Measurement, Objective, Sampling, map_tensors
from entropy_theory.reduce import token_count, token_mean
from llm import measure
from llm.config import TrainConfig
from llm.models import LanguageModel, load_model, resolve_device
from llm.probe import Probe
from llm.rollout import Responses, forward, sample
from llm.tasks import Task, get_task

PROVIDES = frozenset(
    {
        Need.ENTROPY_GRAD,
        Need.SAMPLES,
        Need.LOGIT_SCALE,
        Need.ACTIVATION,
        Need.SAMPLING,
        Need.WHOLE_GROUPS,
    }
)
"""What this world offers a control."""

SEED_STRIDE = 1_000_003
"""Sampling of rollout i draws from a generator seeded with seed * SEED_STRIDE + i."""


@dataclass(frozen=True)
class Rollout:
    """Responses and what stays fixed about them until the next rollout.

    old_logp:    [rows, tokens], nats, of the policy that sampled, at `temperature`
    reward:      [rows], in [0, 1]
    difficulty:  [rows] int64
    temperature: of the sampling distribution
    """

    responses: Responses
    old_logp: Tensor
    reward: Tensor
    difficulty: Tensor
    temperature: float


def build_control(config: TrainConfig) -> Control:
    """The control of a run. Raises ValueError if it is unknown or needs what this world lacks."""
    control = controls.build(config.control, config.set)
    check_needs(config.control, control, "the llm world", PROVIDES)
    return control


def train_seed(config: TrainConfig, seed: int, run) -> None:
    """Train one model, or go on where `run` stopped.

    Args:
      config: see `TrainConfig`.
      seed: of prompts and sampling, both functions of (seed, rollout) and of nothing else.
      run: `load_state() -> dict | None`, `record(metrics, state)`, as `entropy_theory.runs.Run`.
    Raises: ValueError for a model, task, control or device that cannot be used, and for NaN in
      logits, rewards or gradients, naming the step.
    """
    control = build_control(config)
    task = get_task(config.task)
    device = resolve_device(config.device)
    lm = load_model(config.model, config.dtype, device)
    optimizer = torch.optim.Adam(lm.model.parameters(), lr=config.lr)
    probe = Probe(lm, task, config, seed, control.activate)
    control_state = control.init(torch.zeros((), device=device))
    start = 0
    if (state := run.load_state()) is not None:
        start = state["step"]
        lm.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        control_state = _to(state["control"], device)
        saved = _to(state["rollout"], device)
        rollout = Rollout(**{**saved, "responses": Responses(**saved["responses"])})

    for step in range(start, config.rollouts * config.updates_per_rollout):
        index, part = divmod(step, config.updates_per_rollout)
        if part == 0:
            # ---- sample
            sampling = Sampling(torch.tensor(config.temperature, device=device))
            temperature = control.sample(sampling, control_state).temperature.item()

            # ---- rollout
            rollout = make_rollout(lm, task, config, seed, index, step, temperature, control)
        rows = slice(part * config.rows_per_update, (part + 1) * config.rows_per_update)
        responses, reward = rollout.responses[rows], rollout.reward[rows]

        # The statistics of the whole minibatch come before its loss. One micro-batch keeps its graph
        # for the loss; several are run a second time, so that memory does not grow with their number.
        pieces = micro_batches(config.rows_per_update, config.micro_batch_rows)
        scaled = Need.LOGIT_SCALE in control.needs
        once = len(pieces) == 1 and not scaled
        with torch.set_grad_enabled(once):
            passes = [
                forward(lm, responses[p], rollout.temperature, control.activate) for p in pieces
            ]
        logp = torch.cat([p.logp.detach() for p in passes])
        entropy = torch.cat([p.entropy.detach() for p in passes])
        _check_finite(logp, "logits", step)

        # ---- advantage
        group = torch.arange(len(reward), device=device) // config.group_size
        advantage = ADVANTAGES[config.advantage](reward.to(logp.dtype), group)
        batch = Batch(
            logp=logp,
            old_logp=rollout.old_logp[rows],
            advantage=advantage.unsqueeze(-1).expand_as(logp),
            mask=responses.mask,
            entropy=entropy,
            outcome=reward,
            group=group,
        )

        # ---- edit
        plain = Objective.from_batch(batch, config.clip_low, config.clip_high)
        objective = control.edit(plain, batch, control_state)

        # ---- update
        logits_before = probe.before(lm, step)
        theorems = measure.theorem_metrics(batch, passes)
        optimizer.zero_grad(set_to_none=True)
        count = token_count(objective.mask)
        for piece, kept in zip(pieces, passes, strict=True):
            scale = objective.logit_scale[piece] if scaled else None
            stats = kept if once else forward(
                lm, responses[piece], rollout.temperature, control.activate, scale
            )
            loss = token_loss(stats.logp, stats.entropy, _rows(batch, piece), _rows(objective, piece))
            minibatch_loss(loss, count).backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(lm.model.parameters(), config.grad_clip)
        _check_finite(grad_norm, "the gradient", step)
        optimizer.step()

        # ---- measure
        metrics = {
            "step": step,
            "rollout": index,
            "temperature": rollout.temperature,
            "grad_norm": grad_norm.item(),
            **measure.rollout_metrics(
                rollout.responses, rollout.old_logp, rollout.reward, rollout.difficulty, task.difficulties
            ),
            **measure.batch_metrics(batch, plain, objective),
            **measure.group_metrics(batch, rollout.difficulty[rows], config.group_size),
            **theorems,
            **probe.change(lm, step, logits_before),
        }

        # ---- advance
        measurement = Measurement(entropy=token_mean(entropy, responses.mask))
        control_state = control.advance(control_state, measurement)
        run.record(
            metrics,
            {
                "step": step + 1,
                "model": lm.model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "control": control_state,
                "rollout": asdict(rollout),
            },
        )


def make_rollout(
    lm: LanguageModel,
    task: Task,
    config: TrainConfig,
    seed: int,
    index: int,
    step: int,
    temperature: float,
    control: Control,
) -> Rollout:
    """Sample and reward the responses of rollout `index`.

    `old_logp` comes from the `forward` of training, over the same micro-batches, not from sampling: the
    two differ by rounding, and KL-Cov's penalty has a gradient of full size on any difference, so that a
    fresh minibatch must see a log-ratio of exactly 0.
    """
    prompts = task.make_prompts(config.prompts_per_rollout, seed, index)
    generator = torch.Generator(lm.model.device).manual_seed(seed * SEED_STRIDE + index)
    try:
        responses = sample(
            lm,
            [prompt.text for prompt in prompts],
            config.group_size,
            config.max_new_tokens,
            temperature,
            generator,
            control.activate,
        )
    except FloatingPointError as error:
        raise ValueError(_not_finite(str(error), step)) from None
    texts = lm.tokenizer.batch_decode(responses.tokens, skip_special_tokens=True)
    rows = [prompt for prompt in prompts for _ in range(config.group_size)]
    finished = responses.finished.tolist()
    reward = torch.tensor(
        [task.reward(*row) for row in zip(rows, texts, finished, strict=True)], device=lm.model.device
    )
    _check_finite(reward, "rewards", step)
    pieces = [
        slice(start + p.start, start + p.stop)
        for start in range(0, len(rows), config.rows_per_update)
        for p in micro_batches(config.rows_per_update, config.micro_batch_rows)
    ]
    with torch.no_grad():
        passes = [forward(lm, responses[p], temperature, control.activate) for p in pieces]
    return Rollout(
        responses=responses,
        old_logp=torch.cat([p.logp for p in passes]),
        reward=reward,
        difficulty=torch.tensor([prompt.difficulty for prompt in rows], device=lm.model.device),
        temperature=temperature,
    )


def micro_batches(rows: int, size: int) -> list[slice]:
    """`rows` rows in slices of at most `size`."""
    return [slice(i, min(i + size, rows)) for i in range(0, rows, size)]


def _rows(record, piece: slice):
    return map_tensors(record, lambda tensor: tensor[piece])


def _check_finite(values: Tensor, what: str, step: int) -> None:
    if not torch.isfinite(values).all():
        raise ValueError(_not_finite(f"NaN or infinity in {what}", step))


def _not_finite(what: str, step: int) -> str:
    return f"{what} at step {step}; the last completed step is saved, start anew with a smaller lr"


def _to(value: Any, device: torch.device) -> Any:
    """Nested dicts, lists and tuples with their tensors on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {k: _to(v, device) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to(v, device) for v in value)
    return value
