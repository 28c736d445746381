"""GRPO on a language model: one loop, read from top to bottom."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from entropy_theory import controls
from entropy_theory.advantage import ADVANTAGES
from entropy_theory.control import Control, Need, check_fits
from entropy_theory.measure import (
    clip_fractions,
    minibatch_change,
    reference_kl,
    selection,
    theorem_predictions,
    token_covariance,
)
from entropy_theory.records import Batch, Measurement, Objective, Sampling
from entropy_theory.reduce import token_mean
from entropy_theory.runs import Progress, Run
from llm import measure, prime
from llm.checkpoints import CheckpointStore
from llm.config import TrainConfig
from llm.evaluate import evaluate
from llm.forward import Reading, activation
from llm.lora import add_lora
from llm.memory import autocast_decoder, checkpoint_blocks, choose_token_kernel, keep_freed_memory, use_threads
from llm.models import LanguageModel, load_model, resolve_device, training_memory
from llm.optimizer import learning_rate, make_optimizer
from llm.policy import engine
from llm.probe import Probe
from llm.prompts import fitting
from llm.ranks import ALONE, Ranks
from llm.rollouts import Rollout, check_finite, make_rollout, not_finite
from llm.samplers import Sampler, make_sampler
from llm.tasks import Task, get_task
from llm.update import Loss, accumulate_gradient, micro_batches, minibatch_statistics

_ALWAYS = frozenset(
    {
        Need.ENTROPY_GRAD,
        Need.ENTROPY_SUPPORT,
        Need.SAMPLES,
        Need.REF_LOGP,
        Need.PROXY_LOGP,
        Need.COLLISION,
        Need.LOGIT_SCALE,
        Need.ACTIVATION,
        Need.SAMPLING,
        Need.WHOLE_GROUPS,
        Need.SEVERAL_STATES,
    }
)


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


def train_seed(
    config: TrainConfig, seed: int, run: Run, progress: Progress | None = None, ranks: Ranks = ALONE
) -> None:
    """Train one model, or go on where `run` stopped.

    Args:
      config: see `TrainConfig`.
      seed: of prompts and sampling, both functions of (seed, batch of prompts) and of nothing else.
      run: where metrics go, one line per optimizer step, and the state to resume from.
      progress: called with (rollouts done, rollouts in all, last line) after each rollout.
      ranks: the processes of the run; `run` is the main one's, the others have an `Absent`.
    Raises: ValueError for a model, task, control or device that cannot be used, and for NaN in
      logits or gradients, naming the step.
    """
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    build_control(config)  # what is wrong with it is said before a model is loaded
    with closing(get_task(config)) as task, training_memory(min(config.micro_batch_rows, config.rows_per_update)):
        _train(config, seed, run, set_up(config, seed, task, ranks), progress, ranks)


def _train(config: TrainConfig, seed: int, run: Run, parts: Parts, progress: Progress | None, ranks: Ranks) -> None:
    """The loop of `train_seed`."""
    task, lm, reader, control, optimizer, reference, rewards, sampler, probe = parts
    device = lm.model.device
    control_state = control.init(torch.zeros((), device=device))
    start = position = skipped = 0
    run.store = CheckpointStore(lm, config.keep_checkpoints)
    if (state := ranks.share(run.load_state())) is not None:
        start, position, skipped = state["step"], state["position"], state["skipped"]
        lm.model.load_state_dict(state["model"])
        if rewards is not None:
            rewards.load_state(state["rewards"])
        control_state = _to(state["control"], device)
        rollout = Rollout.from_state(_to(state["rollout"], device))
    training = engine(ranks, lm, reader, optimizer, config.grad_clip, config.micro_batch_rows)
    if state is not None:
        training.load_optimizer_state(state["optimizer"])
        del state

    for step in range(start, config.steps):
        index, part = divmod(step, config.updates_per_rollout)
        if part == 0:
            # ---- sample
            sampling = Sampling(torch.tensor(config.temperature, device=device))
            temperature = control.sample(sampling, control_state).temperature.item()
            sampler.sync()

            # ---- rollout
            rollout = make_rollout(
                reader, task, config, seed, position, step, temperature, control, reference, sampler, ranks
            )
            position += rollout.batches
            if rewards is not None:
                rollout = replace(rollout, process=process_rewards(rewards, rollout, step, ranks))
        rows = slice(part * config.rows_per_update, (part + 1) * config.rows_per_update)
        responses, reward = rollout.responses[rows], rollout.reward[rows]

        pieces = micro_batches(len(ranks.numbers(config.rows_per_update)), config.micro_batch_rows)
        reading = Reading.of(control, rollout.temperature, chunk=config.token_chunk or None)
        once = len(pieces) == 1 and not reading.scaled
        logp, entropy, collision, graphs = minibatch_statistics(training, responses, reading, pieces, once)
        check_finite(logp, "logits", step)
        if rollout.old_logp is None:
            rollout = replace(rollout, old_logp=logp)

        # ---- advantage
        group = torch.arange(len(reward), device=device) // config.group_size
        if rollout.process is None:
            advantage = ADVANTAGES[config.advantage](reward.to(logp.dtype), group, responses.mask)
        else:
            process = prime.NORMS[config.prime_norm](rollout.process)
            advantage = prime.advantage(reward, process[rows], group, responses.mask)
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
            ref_logp=_part(rollout.ref_logp, rows),
            proxy_logp=_part(rollout.proxy_logp, rows),
            collision=collision if Need.COLLISION in control.needs else None,
            micro_batch=ranks.micro_batch(len(reward), config.micro_batch_rows, device),
        )

        # ---- edit
        plain = Objective.from_batch(batch, config.clip_low, config.clip_high)
        objective = control.edit(plain, batch, control_state)

        # ---- update
        difficulty = rollout.difficulty[rows]
        before = probe.before(reader, step, responses, advantage, difficulty, rollout.temperature)
        training.start(learning_rate(config, step))
        form = Loss(config.surrogate, config.aggregation, config.max_new_tokens)
        accumulate_gradient(training, responses, batch, objective, reading, pieces, graphs, form)
        del graphs
        grad_norm = training.clip(config.grad_clip)
        if torch.isfinite(grad_norm):
            training.step()
        elif (skipped := skipped + 1) > config.skip_nonfinite:
            raise ValueError(not_finite("NaN or infinity in the gradient", step))

        # ---- measure
        last = step + 1 == config.steps
        evaluated = last or (config.eval_every > 0 and (step + 1) % config.eval_every == 0)
        if evaluated:
            sampler.sync()
        entropy_after = None
        if before is not None:
            with torch.no_grad():
                _, entropy_after, _, _ = minibatch_statistics(training, responses, reading, pieces, False)
        line = {
            "step": step + 1,
            "rollout": index,
            "temperature": rollout.temperature,
            "lr": learning_rate(config, step),
            "entropy": token_mean(entropy, batch.mask),
            "sampled_entropy": -token_mean(batch.old_logp, batch.mask),
            "grad_norm": grad_norm,
            "skipped_steps": skipped,
            **measure.rollout_metrics(rollout, task.difficulties, task.kinds),
            **measure.group_metrics(batch, difficulty, task.difficulties),
            **measure.process_metrics(rollout.process, rollout.reward),
            **selection(plain, objective),
            **clip_fractions(batch, objective),
            **token_covariance(batch),
            **theorem_predictions(batch, collision),
            **({} if entropy_after is None else minibatch_change(batch, entropy_after)),
            **probe.change(reader, step, before),
            **(evaluate(reader, task, config, seed, activation(control), sampler, ranks) if evaluated else {}),
        }

        # ---- advance
        control_state = control.advance(control_state, Measurement(line["entropy"], reference_kl(batch)))
        state = None
        if last or (step + 1) % config.save_every == 0:
            state = {
                "step": step + 1,
                "position": position,
                "skipped": skipped,
                "model": training.weights(),
                "optimizer": training.optimizer_state(),
                "rewards": None if rewards is None else rewards.state(),
                "control": control_state,
                "rollout": rollout.to_state(),
            }
        run.record(line, state)
        del state
        if progress and part + 1 == config.updates_per_rollout:
            progress(index + 1, config.rollouts, line)


# --- what the loop works with -----------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """What a run is made of; `reference` and `rewards` are None unless something needs them.

    `reader` is the policy for what takes no gradient: `lm` itself, or a copy where its weights lie in shards.
    """

    task: Task
    lm: LanguageModel
    reader: LanguageModel
    control: Control
    optimizer: torch.optim.Optimizer
    reference: LanguageModel | None
    rewards: prime.RewardModel | None
    sampler: Sampler
    probe: Probe


def set_up(config: TrainConfig, seed: int, task: Task, ranks: Ranks = ALONE) -> Parts:
    """The parts of a run before its first step. Raises: ValueError for what cannot be used."""
    device = ranks.device or resolve_device(config.device)
    lm = load_trained(config, seed, device)
    use_threads(lm, config.threads)
    reader = load_trained(config, seed, device) if ranks.sharded else lm
    task, _ = fitting(lm, task, config)
    control = build_control(config, lm.model.config.vocab_size)
    reference = load_reference(config, control, device)
    return Parts(
        task=task,
        lm=lm,
        reader=reader,
        control=control,
        optimizer=make_optimizer(lm, config),
        reference=reference,
        rewards=load_reward_model(config, reference, device),
        sampler=make_sampler(config.sampler, reader),
        probe=Probe(reader, task, config, seed, activation(control)),
    )


def load_trained(config: TrainConfig, seed: int, device: torch.device) -> LanguageModel:
    """The model that is trained, with its adapter where the config asks for one."""
    lm = load_policy(config, device)
    return add_lora(lm, config.lora_rank, config.lora_alpha, seed) if config.lora_rank else lm


def load_policy(config: TrainConfig, device: torch.device) -> LanguageModel:
    """The model as it was before training, set up as the config asks."""
    lm = load_model(config.model, config.dtype, device, config.engine)
    if config.gradient_checkpointing:
        checkpoint_blocks(lm)
    if config.autocast:
        autocast_decoder(lm)
    choose_token_kernel(config.token_kernel, lm.model.device)
    return lm


def load_reference(config: TrainConfig, control: Control, device: torch.device) -> LanguageModel | None:
    """The model as it was before training, where something is compared with it."""
    if Need.REF_LOGP in control.needs or config.advantage == "prime":
        return load_policy(config, device)
    return None


def load_reward_model(
    config: TrainConfig, reference: LanguageModel | None, device: torch.device
) -> prime.RewardModel | None:
    """The process reward model of `advantage = prime`, which starts as a copy of the model."""
    if config.advantage != "prime":
        return None
    lm = load_policy(config, device)
    return prime.RewardModel(lm, reference, config.prime_lr, config.prime_beta, config.micro_batch_rows)


def process_rewards(rewards: prime.RewardModel, rollout: Rollout, step: int, ranks: Ranks = ALONE) -> Tensor:
    """Process rewards of a rollout, [rows, tokens], after one step of their model on it."""
    process = rewards.learn(rollout.responses, rollout.reward, ranks)
    check_finite(process, "process rewards", step)
    return process


def _part(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]


def _to(value: Any, device: torch.device) -> Any:
    """Nested dicts, lists and tuples with their tensors on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {k: _to(v, device) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to(v, device) for v in value)
    return value
