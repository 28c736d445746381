"""The GRPO loop: on-policy facts, resume, logs, errors."""

import math
from dataclasses import asdict, replace

import contract
import pytest
import torch
from llm_runs import SMALL, Memory, pulled, train, weights

from entropy_theory.control import Need, control
from entropy_theory.controls import CONTROLS
from entropy_theory.runs import Run
from entropy_theory.surrogate import SURROGATES
from llm import grpo
from llm.checkpoints import Checkpoints
from llm.config import ADVANTAGES
from llm.forward import forward
from llm.memory import checkpoint_blocks
from llm.models import load_model
from llm.optimizer import learning_rate, make_optimizer
from llm.probe import probe_states
from llm.responses import Responses
from llm.tasks import TASKS, Scores

# --- on-policy facts --------------------------------------------------------------------------------------------------


def test_kl_cov_and_clip_higher_change_nothing_on_a_fresh_minibatch_and_something_on_a_stale_one():
    config = replace(SMALL, rollouts=1, lr=3e-3, clip_high=0.01)  # so that one step reaches the clip
    plain = train(config)
    for name in ("kl_cov", "clip_higher"):
        other = train(replace(config, control=name))
        assert torch.equal(weights(plain, 0), weights(other, 0)), name
        assert not torch.equal(weights(plain, 1), weights(other, 1)), name
    for name in ("entropy_bonus", "clip_cov"):
        settings = {"clip_cov.fraction": 0.1, "clip_cov.low": 0.1} if name == "clip_cov" else {}
        other = train(replace(config, control=name, set=settings))
        assert not torch.equal(weights(plain, 0), weights(other, 0)), name


def test_the_same_with_several_micro_batches():
    config = replace(SMALL, rollouts=1, micro_batch_rows=5)
    assert torch.equal(weights(train(config), 0), weights(train(replace(config, control="kl_cov")), 0))


# --- runs -------------------------------------------------------------------------------------------------------------


class Killed(Run):
    """A run directory whose process dies while it records update `kill`, its metrics line half written."""

    kill = -1

    def record(self, metrics, state):
        if metrics["step"] == self.kill:
            with open(self.folder / "metrics.jsonl", "a") as file:
                file.write('{"step": ')
            raise KeyboardInterrupt
        super().record(metrics, state)


RESUMED = {
    "kl_cov": {},
    "clip_cov": {},
    "entropy_bonus": {},
    "kl_cov rarely saved": {"save_every": 3},
    "pulled": {},  # reference, filtered policy
    "prime": {"advantage": "prime", "control": "pulled"},
    "evaluated": {"eval_prompts": 3, "eval_samples": 2, "eval_every": 3, "control": "temperature"},
    "drawn": {"dynamic_sampling": True, "dynamic_tries": 3, "control": "kl_cov"},
    "adapted": {"lora_rank": 2, "weight_decay": 0.1, "warmup_steps": 3, "control": "none"},
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_killed_run_ends_in_the_same_bits(tmp_path, monkeypatch, case):
    monkeypatch.setitem(CONTROLS, "pulled", pulled())
    config = replace(SMALL, **{"control": case.split()[0], **RESUMED[case]})
    with Run(tmp_path / "whole", asdict(config)) as run:
        grpo.train_seed(config, 1, run)
    for kill in (1, 2, 3, 4) if case == "kl_cov" else (2, 3):  # before and within the rollouts
        with pytest.raises(KeyboardInterrupt), Killed(tmp_path / "killed", asdict(config)) as run:
            run.kill = kill
            grpo.train_seed(config, 1, run)
    with Run(tmp_path / "killed", asdict(config)) as run:
        grpo.train_seed(config, 1, run)
        lines = (tmp_path / "killed" / "metrics.jsonl").read_bytes()
        grpo.train_seed(config, 1, run)  # a finished run stays as it is
    assert lines == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert lines == (tmp_path / "killed" / "metrics.jsonl").read_bytes()
    ends = [Checkpoints(tmp_path / name).load() for name in ("whole", "killed")]
    one, two = (list(tensors(end)) for end in ends)
    assert len(one) == len(two) > len(ends[0].weights) > 0
    for (place, tensor), (other, again) in zip(one, two, strict=True):
        assert place == other and torch.equal(contract.bits(tensor), contract.bits(again)), place


def tensors(value, place=""):
    """(place, tensor) of every tensor in nested dicts and tuples."""
    if isinstance(value, torch.Tensor):
        yield place, value
    elif isinstance(value, dict | tuple | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(part, f"{place}/{key}")


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_precisions_train(dtype):
    memory = train(replace(SMALL, rollouts=1, dtype=dtype, lr=1e-2))
    assert all(math.isfinite(line["grad_norm"]) and line["grad_norm"] > 0 for line in memory.lines)
    assert memory.states[0]["rollout"]["old_logp"].dtype == (torch.float64 if dtype == "float64" else torch.float32)
    assert not torch.equal(weights(memory, 0), weights(memory, 1))


def test_bfloat16_arithmetic_leaves_weights_and_statistics_in_float32():
    plain, fast = train(replace(SMALL, rollouts=1)), train(replace(SMALL, rollouts=1, autocast=True))
    assert {weight.dtype for weight in fast.states[0]["model"].values()} == {torch.float32}
    assert fast.states[0]["rollout"]["old_logp"].dtype == fast.lines[0]["entropy"].dtype == torch.float32
    assert math.isfinite(fast.lines[-1]["grad_norm"]) and not torch.equal(weights(fast, 0), weights(fast, 1))
    # two models of bfloat16's 8 bits, whose logits are about 10: differences of about .05 in each log-probability
    assert 0 < abs(fast.lines[0]["entropy"] - plain.lines[0]["entropy"]) < 0.1


@pytest.mark.parametrize("rows", [128, 5])
def test_checkpointed_blocks_change_memory_only(rows):
    config = replace(SMALL, micro_batch_rows=rows)
    plain, saved = train(config), train(replace(config, gradient_checkpointing=True))
    assert torch.equal(weights(plain, -1), weights(saved, -1))


def test_checkpointed_blocks_are_run_again_in_the_backward_pass(monkeypatch):
    """Once in each no-grad pass and in each forward pass, and once more for each backward pass."""
    lm = load_model("tiny")
    block = lm.model.get_decoder().layers[0]
    calls, plain = [], block.forward
    monkeypatch.setattr(block, "forward", lambda *args, **kwargs: calls.append(1) or plain(*args, **kwargs))
    checkpoint_blocks(lm)
    tokens = torch.arange(2, 8).unsqueeze(0)
    with torch.no_grad():
        lm.model(input_ids=tokens)
    assert len(calls) == 1
    loss = lm.model(input_ids=tokens, use_cache=False).logits.sum()
    assert len(calls) == 2
    loss.backward()
    assert len(calls) == 3


def test_weight_decay_takes_its_share_of_every_weight():
    config = replace(SMALL, rollouts=1, dtype="float64", probe_every=0, anneal_lr=False)
    start = torch.cat([weight.flatten() for weight in load_model("tiny", "float64").model.state_dict().values()])
    plain, decayed = train(config), train(replace(config, weight_decay=0.3))
    # w (1 - lr wd) - lr m: the same step from the same gradient, in another order of roundings of weights below 10
    assert (weights(plain, 0) - 1e-3 * 0.3 * start - weights(decayed, 0)).abs().max() <= 1e-14
    assert (weights(plain, 0) - weights(decayed, 0)).abs().max() > 1e-5


def test_without_decay_the_optimizer_is_adam_bit_for_bit():
    lm, other = load_model("tiny"), load_model("tiny")
    ours = make_optimizer(lm, SMALL)
    adam = torch.optim.Adam(other.model.parameters(), lr=SMALL.lr, fused=True)
    rng = torch.Generator().manual_seed(0)
    for _ in range(3):
        for one, two in zip(lm.model.parameters(), other.model.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=rng)
            two.grad = one.grad.clone()
        ours.step()
        adam.step()
    assert all(torch.equal(a, b) for a, b in zip(lm.model.parameters(), other.model.parameters(), strict=True))


def test_lora_trains_its_matrices_and_leaves_the_weights():
    memory = train(replace(SMALL, lora_rank=2, dtype="bfloat16", probe_every=0))
    base = load_model("tiny", "bfloat16").model.state_dict()
    first, last = memory.states[0]["model"], memory.states[-1]["model"]
    moved = {name for name, weight in last.items() if not torch.equal(weight, first[name])}
    assert moved and all("lora" in name and last[name].dtype == torch.float32 for name in moved)
    kept = {name.replace(".base_layer", ""): weight for name, weight in last.items() if "lora" not in name}
    assert kept.keys() == base.keys() and all(torch.equal(kept[name], base[name]) for name in base)


def test_a_held_out_evaluation_stands_in_every_nth_line():
    plain = train(SMALL)
    memory = train(replace(SMALL, eval_every=3, eval_prompts=2, eval_samples=2))
    assert ["pass_at_2" in line for line in memory.lines] == [False, False, True, True]
    assert torch.equal(weights(plain, -1), weights(memory, -1))


def test_one_update_per_rollout_leaves_idle_what_waits_for_stale_ratios():
    config = replace(SMALL, updates_per_rollout=1, clip_high=0.01, lr=3e-3)
    plain, higher = (train(replace(config, control=name)) for name in ("none", "clip_higher"))
    assert len(plain.lines) == 2 and Need.STALE not in grpo.provides(config)
    assert torch.equal(weights(plain, -1), weights(higher, -1))
    assert not torch.equal(weights(plain, 0), weights(plain, 1))


@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_every_advantage_trains(advantage):
    memory = train(replace(SMALL, advantage=advantage, probe_every=0))
    assert all(torch.isfinite(torch.as_tensor(line["grad_norm"])) and line["grad_norm"] > 0 for line in memory.lines)
    assert ("process_cross_entropy" in memory.lines[0]) == (advantage == "prime")


@pytest.mark.parametrize("surrogate", sorted(SURROGATES))
def test_surrogates_agree_at_ratio_one_and_part_afterwards(surrogate):
    """Their slope by the log-ratio is A at 1, up to rounding; the gates and clips differ from the second update on."""
    config = replace(SMALL, rollouts=1, dtype="float64", lr=1e-2, clip_low=0.01, clip_high=0.02, probe_every=0)
    plain, other = train(config), train(replace(config, surrogate=surrogate))
    assert other.lines[0]["grad_norm"].item() == pytest.approx(plain.lines[0]["grad_norm"].item(), rel=1e-9)
    assert (other.lines[1]["grad_norm"].item() == plain.lines[1]["grad_norm"].item()) == (surrogate == "ppo")


def test_seeds_differ_and_a_seed_repeats():
    assert torch.equal(weights(train(SMALL), -1), weights(train(SMALL), -1))
    assert not torch.equal(weights(train(SMALL), -1), weights(train(SMALL, seed=1), -1))


def test_progress_reports_rollouts():
    seen = []
    grpo.train_seed(SMALL, 0, Memory(), lambda done, total, line: seen.append((done, total, line["step"])))
    assert seen == [(1, 2, 2), (2, 2, 4)]


# --- logs -------------------------------------------------------------------------------------------------------------


def test_minibatch_change_is_that_of_the_minibatch_between_two_states():
    """Recomputed from the saved weights before and after the second update, on its own half of the responses."""
    memory = train(replace(SMALL, dtype="float64"))
    lm = load_model("tiny", "float64")
    entropies = []
    for update in (0, 1):
        lm.model.load_state_dict(memory.states[update]["model"])
        responses = Responses(**memory.states[1]["rollout"]["responses"])[16:32]
        with torch.no_grad():
            entropies.append(forward(lm, responses).entropy[responses.mask].mean().item())
    assert memory.lines[1]["minibatch_entropy_change"].item() == pytest.approx(entropies[1] - entropies[0], rel=1e-9)
    assert entropies[1] != entropies[0]


def test_logged_statistics_are_those_of_the_rollout():
    memory = train(replace(SMALL, dtype="float64"))
    for i, (line, state) in enumerate(zip(memory.lines, memory.states, strict=True)):
        saved = state["rollout"]
        responses = Responses(**saved["responses"])
        half = slice(16 * (i % 2), 16 * (i % 2) + 16)
        assert line["reward"].item() == saved["reward"].mean().item()
        assert line["response_length"].item() == responses.mask.double().sum().item() / 32
        if i % 2 == 0:
            logp = [saved["old_logp"][row, t].item() for row in range(16) for t in range(28) if responses.mask[row, t]]
            # the statistics pass sees 16 rows, the rollout's 32: sums in another order
            assert line["sampled_entropy"].item() == pytest.approx(-math.fsum(logp) / len(logp), rel=1e-11)
        lengths = responses.mask[half].sum(-1)
        mean_logp = saved["old_logp"][half].sum(-1) / lengths
        if i % 2 == 0:
            reward = saved["reward"][half].view(4, 4)
            deviation = (reward - reward.mean(1, keepdim=True)).double()
            advantage = deviation / (deviation.square().sum(1, keepdim=True) / 3).sqrt().clamp(min=1e-30)
            within = ((mean_logp.view(4, 4) - mean_logp.view(4, 4).mean(1, keepdim=True)) * advantage).mean(1)
            # the loop divides by std + 1e-6: at most 4e-6 of the value
            assert line["cov_group"].item() == pytest.approx(within.mean().item(), rel=1e-5)


def test_probe_can_be_thinned_or_switched_off():
    thin = train(replace(SMALL, probe_every=2)).lines
    full = train(SMALL).lines
    assert [line["measured_entropy_change"] is None for line in thin] == [False, True, False, True]
    for a, b in ((thin[0], full[0]), (thin[2], full[2])):
        assert torch.equal(a["measured_entropy_change"], b["measured_entropy_change"])
    assert "measured_entropy_change" not in train(replace(SMALL, probe_every=0)).lines[0]


def test_probe_states_are_real_logits_and_a_real_step():
    logits, change, advantage = probe_states()
    assert logits.shape == change.shape and logits.shape[1] == 20 and len(logits) > 100
    assert logits.dtype == change.dtype == torch.float64 and advantage is None
    assert torch.isfinite(logits).all() and 0 < change.abs().max() < 5


@pytest.mark.parametrize(("anneal", "shares"), [(True, [1, 0.75, 0.5, 0.25]), (False, [1, 1, 1, 1])])
def test_the_learning_rate_falls_linearly_if_asked(anneal, shares):
    memory = train(replace(SMALL, anneal_lr=anneal))
    rates = [state["optimizer"]["param_groups"][0]["lr"] for state in memory.states]
    assert rates == pytest.approx([1e-3 * share for share in shares])
    assert [line["lr"] for line in memory.lines] == rates


def test_warm_up_by_hand():
    """4 steps, lr 1: the shares of annealing are 1, .75, .5, .25; those of a warm-up over 3 steps 1/3, 2/3, 1, 1."""
    config = replace(SMALL, lr=1.0, warmup_steps=3)
    rates = [learning_rate(config, step) for step in range(4)]
    assert rates == pytest.approx([1 / 3, 0.5, 0.5, 0.25], rel=1e-15)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_what_the_world_lacks_is_named(monkeypatch):
    monkeypatch.setitem(CONTROLS, "needy", lambda: control(needs={Need.STALE}))
    with pytest.raises(ValueError, match="control needy needs several updates per rollout, which the llm world does"):
        train(replace(SMALL, control="needy", updates_per_rollout=1))


def test_nan_is_an_error_that_names_the_step(monkeypatch):
    broken = TASKS["tiny"]._replace(score=lambda prompts, texts, finished: Scores([math.nan] * len(texts), {}))
    monkeypatch.setitem(TASKS, "broken", broken)
    with pytest.raises(ValueError, match="NaN or infinity in rewards at step 1"):
        train(replace(SMALL, task="broken"))
    with pytest.raises(ValueError, match=r"at step 2.*smaller lr"):
        train(replace(SMALL, lr=1e30))


def broken_gradient(monkeypatch, at: set[int]) -> None:
    """Put an infinity into the gradient of the optimizer steps `at`."""
    plain, seen = grpo.accumulate_gradient, []

    def accumulate(training, *args, **kwargs):
        plain(training, *args, **kwargs)
        if len(seen) in at:
            next(training.lm.model.parameters()).grad[0, 0] = math.inf
        seen.append(1)

    monkeypatch.setattr(grpo, "accumulate_gradient", accumulate)


def test_a_step_whose_gradient_is_not_finite_is_skipped_and_counted(monkeypatch):
    broken_gradient(monkeypatch, {1, 2})
    memory = train(replace(SMALL, skip_nonfinite=2, probe_every=0))
    assert [line["skipped_steps"] for line in memory.lines] == [0, 1, 2, 2]
    assert torch.equal(weights(memory, 0), weights(memory, 2)) and torch.isfinite(weights(memory, 3)).all()
    assert not torch.equal(weights(memory, 2), weights(memory, 3))


def test_the_skipped_step_too_many_ends_the_run(monkeypatch):
    broken_gradient(monkeypatch, {1, 2})
    with pytest.raises(ValueError, match=r"NaN or infinity in the gradient at step 3"):
        train(replace(SMALL, skip_nonfinite=1, probe_every=0))


def test_a_task_is_closed_whatever_happens(monkeypatch):
    closed = []
    monkeypatch.setitem(TASKS, "open", TASKS["tiny"]._replace(close=lambda: closed.append(1)))
    config = replace(SMALL, task="open", rollouts=1, probe_every=0)
    with pytest.raises(ValueError, match="at step 2"):
        train(replace(config, lr=1e30))
    assert closed == [1]
    train(config)
    assert closed == [1, 1]


def test_out_of_memory_names_the_setting_to_lower(monkeypatch):
    def too_large(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(grpo, "accumulate_gradient", too_large)
    with pytest.raises(ValueError, match=r"out of memory: lower --micro-batch-rows, which is 16"):
        train(SMALL)


def test_an_unknown_control_is_refused():
    with pytest.raises(ValueError, match="unknown control 'kl_cow'"):
        train(replace(SMALL, control="kl_cow"))
