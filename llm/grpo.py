"""GRPO on a language model: one loop, read from top to bottom."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from entropy_theory import controls
from entropy_theory.advantage import ADVANTAGES
from entropy_theory.control import Control, Need, check_fits
from entropy_theory.loss import minibatch_loss, token_loss
from entropy_theory.measure import (
    clip_fractions,
    minibatch_change,
    reference_kl,
    selection,
    theorem_predictions,
    token_covariance,
)
from entropy_theory.records import Batch, Measurement, Objective, Sampling, map_tensors
from entropy_theory.reduce import token_count, token_mean
from entropy_theory.runs import Progress, Run
from llm import measure
from llm.config import TrainConfig
from llm.models import LanguageModel, load_model, resolve_device
from llm.probe import Probe
from llm.rollout import Activation, Responses, forward, sample, token_collision
from llm.tasks import Task, get_task

Graph = tuple[Tensor, Tensor]
"""logp and entropy of a micro-batch, with grad."""

_ALWAYS = frozenset(
    {
        Need.ENTROPY_GRAD,
        Need.SAMPLES,
        Need.LOGIT_SCALE,
        Need.ACTIVATION,
        Need.SAMPLING,
        Need.WHOLE_GROUPS,
        Need.SEVERAL_STATES,
    }
)

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


def provides(config: TrainConfig) -> frozenset[Need]:
    """What a control may ask of this world under these settings."""
    return _ALWAYS | ({Need.STALE} if config.updates_per_rollout > 1 else frozenset())


def build_control(config: TrainConfig, vocabulary: int = sys.maxsize) -> Control:
    """The control of a run. Raises ValueError if it is unknown, needs what this world lacks, or aims too high.

    Args: vocabulary: tokens the model chooses from; not known before it is loaded.
    """
    control = controls.build(config.control, config.set)
    check_fits(config.control, control, "the llm world", provides(config), vocabulary)
    return control


def train_seed(config: TrainConfig, seed: int, run: Run, progress: Progress | None = None) -> None:
    """Train one model, or go on where `run` stopped.

    Args:
      config: see `TrainConfig`.
      seed: of prompts and sampling, both functions of (seed, rollout) and of nothing else.
      run: where metrics go, one line per optimizer step, and the state to resume from.
      progress: called with (rollouts done, rollouts in all, last line) after each rollout.
    Raises: ValueError for a model, task, control or device that cannot be used, and for NaN in
      logits, rewards or gradients, naming the step.
    """
    torch.set_num_threads(config.threads)
    build_control(config)  # what is wrong with it is said before a model is loaded
    task = get_task(config.task)
    device = resolve_device(config.device)
    lm = load_model(config.model, config.dtype, device)
    control = build_control(config, lm.model.config.vocab_size)
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

        pieces = micro_batches(config.rows_per_update, config.micro_batch_rows)
        once = len(pieces) == 1 and Need.LOGIT_SCALE not in control.needs
        logp, entropy, collision, graphs = minibatch_statistics(
            lm, responses, rollout.temperature, control.activate, pieces, keep_graphs=once
        )
        _check_finite(logp, "logits", step)

        # ---- advantage
        group = torch.arange(len(reward), device=device) // config.group_size
        advantage = ADVANTAGES[config.advantage](reward.to(logp.dtype), group, responses.mask)
        batch = Batch(
            logp=logp,
            # Still the policy that sampled, but rounding may depend on the shape of a batch, and a penalty
            # on |log ratio| has a gradient of full size at 1e-8 and none at 0.
            old_logp=logp if part == 0 else rollout.old_logp[rows],
            advantage=advantage,
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
        optimizer.zero_grad(set_to_none=True)
        accumulate_gradient(lm, responses, batch, objective, rollout.temperature, control, pieces, graphs)
        del graphs
        grad_norm = torch.nn.utils.clip_grad_norm_(lm.model.parameters(), config.grad_clip)
        _check_finite(grad_norm, "the gradient", step)
        share_left = 1 - step / (config.rollouts * config.updates_per_rollout)
        for parameters in optimizer.param_groups:
            parameters["lr"] = config.lr * (share_left if config.anneal_lr else 1.0)
        optimizer.step()

        # ---- measure
        entropy_after = None
        if logits_before is not None:
            with torch.no_grad():
                _, entropy_after, _, _ = minibatch_statistics(
                    lm, responses, rollout.temperature, control.activate, pieces, keep_graphs=False
                )
        line = {
            "step": step + 1,
            "rollout": index,
            "temperature": rollout.temperature,
            "entropy": token_mean(entropy, batch.mask),
            "sampled_entropy": -token_mean(batch.old_logp, batch.mask),
            "grad_norm": grad_norm,
            **measure.rollout_metrics(
                rollout.responses, rollout.old_logp, rollout.reward, rollout.difficulty, task.difficulties
            ),
            **measure.group_metrics(batch, rollout.difficulty[rows], task.difficulties),
            **selection(plain, objective),
            **clip_fractions(batch, objective),
            **token_covariance(batch),
            **theorem_predictions(batch, collision),
            **({} if entropy_after is None else minibatch_change(batch, entropy_after)),
            **probe.change(lm, step, logits_before),
        }

        # ---- advance
        control_state = control.advance(control_state, Measurement(line["entropy"], reference_kl(batch)))
        save = (step + 1) % config.save_every == 0 or step + 1 == config.rollouts * config.updates_per_rollout
        state = {
            "step": step + 1,
            "model": lm.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "control": control_state,
            "rollout": asdict(rollout),
        }
        run.record(line, state if save else None)
        if progress and part + 1 == config.updates_per_rollout:
            progress(index + 1, config.rollouts, line)


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

    `old_logp` comes from the `forward` of training, not from sampling: the two differ by rounding
    (logged as sampling_mismatch), which is no step of the policy.
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
    with torch.no_grad():
        old_logp = [
            forward(lm, responses[piece], temperature, control.activate).logp
            for piece in micro_batches(len(rows), config.micro_batch_rows)
        ]
    return Rollout(
        responses=responses,
        old_logp=torch.cat(old_logp),
        reward=reward,
        difficulty=torch.tensor([prompt.difficulty for prompt in rows], device=lm.model.device),
        temperature=temperature,
    )


def minibatch_statistics(
    lm: LanguageModel,
    responses: Responses,
    temperature: float,
    activate: Activation,
    pieces: Sequence[slice],
    keep_graphs: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Graph] | None]:
    """What the control and the logs must know of the whole minibatch before its loss can be formed.

    Returns: logp, entropy and collision, [rows, tokens] without grad; and, if `keep_graphs`, logp and entropy of
      each piece with their graphs. A minibatch of one piece then needs no second forward pass; one of several is
      run again, so that memory does not grow with their number.
    """
    columns: list[tuple[Tensor, ...]] = []
    graphs: list[Graph] = []
    for piece in pieces:
        logp, entropy, logits = forward(lm, responses[piece], temperature, activate)
        collision = token_collision(logits, responses.mask[piece])
        columns.append((logp.detach(), entropy.detach(), collision))
        if keep_graphs:
            graphs.append((logp, entropy))
    logp, entropy, collision = (torch.cat(column) for column in zip(*columns, strict=True))
    return logp, entropy, collision, graphs if keep_graphs else None


def accumulate_gradient(
    lm: LanguageModel,
    responses: Responses,
    batch: Batch,
    objective: Objective,
    temperature: float,
    control: Control,
    pieces: Sequence[slice],
    graphs: Sequence[Graph] | None = None,
) -> None:
    """Add the gradient of the minibatch's loss to the parameters.

        loss = sum_tokens token_loss / (valid tokens of the whole minibatch)

    The count is the minibatch's, so the gradient does not depend on how `pieces` cut its rows.
    """
    count = token_count(objective.mask)
    for i, piece in enumerate(pieces):
        if graphs is not None:
            logp, entropy = graphs[i]
        else:
            scale = objective.logit_scale[piece] if Need.LOGIT_SCALE in control.needs else None
            logp, entropy, _ = forward(lm, responses[piece], temperature, control.activate, scale)
        loss = token_loss(logp, entropy, _rows(batch, piece), _rows(objective, piece))
        minibatch_loss(loss, count).backward()


def micro_batches(rows: int, size: int) -> list[slice]:
    """`rows` rows in slices of at most `size`."""
    return [slice(i, min(i + size, rows)) for i in range(0, rows, size)]


def _rows(record, piece: slice):
    return map_tensors(record, lambda tensor: tensor[piece])


def _check_finite(values: Tensor, what: str, step: int) -> None:
    if not torch.isfinite(values).all():
        raise ValueError(_not_finite(f"NaN or infinity in {what}", step))


def _not_finite(what: str, step: int) -> str:
    return f"{what} at step {step + 1}; the last completed step is saved, start anew with a smaller lr"


def _to(value: Any, device: torch.device) -> Any:
    """Nested dicts, lists and tuples with their tensors on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {k: _to(v, device) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to(v, device) for v in value)
    return value
