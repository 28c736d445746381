"""The GRPO loop: gradients that do not depend on how the batch is cut, resume, on-policy facts, logs, errors."""

import math
from dataclasses import asdict, replace

import pytest
import torch

from entropy_theory.advantage import grpo as grpo_advantage
from entropy_theory.control import Need, control
from entropy_theory.controls import CONTROLS, build
from entropy_theory.records import Batch, Objective, map_tensors
from entropy_theory.runs import Run, read_metrics
from llm import grpo
from llm.config import TrainConfig
from llm.models import load_model
from llm.probe import probe_states
from llm.rollout import Responses, forward, sample
from llm.tasks import TASKS, tiny

SMALL = TrainConfig(
    rollouts=2, prompts_per_rollout=8, group_size=4, updates_per_rollout=2, probe_responses=8, device="cpu", lr=1e-3
)


class Memory:
    """A run directory that lives in a list; optionally killed before it has recorded update `kill`."""

    def __init__(self, kill: int | None = None):
        self.lines, self.states, self.kill = [], [], kill

    def load_state(self):
        return None

    def record(self, line, state):
        if len(self.lines) == self.kill:
            raise KeyboardInterrupt
        self.lines.append(line)
        weights = {name: weight.clone() for name, weight in state["model"].items()}
        self.states.append({**state, "model": weights})


def train(config: TrainConfig, seed: int = 0) -> Memory:
    memory = Memory()
    grpo.train_seed(config, seed, memory)
    return memory


def weights(memory: Memory, update: int) -> torch.Tensor:
    return torch.cat([w.flatten() for w in memory.states[update]["model"].values()])


# --- the gradient -----------------------------------------------------------------------------------------------------


def stale_minibatch(lm) -> tuple[Responses, Batch]:
    """32 responses of the tiny model and their record, after a step away from the policy that sampled."""
    questions = tiny.make_prompts(8, 5, 0)
    responses = sample(lm, [q.text for q in questions], 4, 28, 1.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        old_logp = forward(lm, responses, 1.0).logp
        generator = torch.Generator().manual_seed(1)
        for parameter in lm.model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        logp, entropy, _ = forward(lm, responses, 1.0)
    reward = (torch.arange(32) * 7 % 3 == 0).double()
    group = torch.arange(32) // 4
    advantage = grpo_advantage(reward, group).unsqueeze(-1).expand_as(logp)
    return responses, Batch(logp, old_logp, advantage, responses.mask, entropy, reward, group)


def gradient(lm, responses, batch, edited, objective, pieces) -> torch.Tensor:
    lm.model.zero_grad(set_to_none=True)
    grpo.accumulate_gradient(lm, responses, batch, objective, 1.0, edited, pieces)
    return torch.cat([p.grad.flatten() for p in lm.model.parameters()])


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """Five more columns of padding for what is [rows, tokens]; they hold ones, which nothing may read."""
    if tensor.dim() < 2:
        return tensor
    fill = torch.ones(len(tensor), 5, dtype=tensor.dtype)
    return torch.cat([tensor, torch.zeros_like(fill) if tensor.dtype == torch.bool else fill], -1)


@pytest.mark.parametrize("name", sorted(CONTROLS))
def test_gradient_does_not_depend_on_split_row_order_or_padding(name):
    lm = load_model("tiny", "float64")
    responses, batch = stale_minibatch(lm)
    settings = {"clip_cov": {"clip_cov.fraction": 0.05, "clip_cov.low": 0.1}, "kl_cov": {"kl_cov.fraction": 0.1}}
    chosen = build(name, settings.get(name, {}))
    state = chosen.init(torch.zeros((), dtype=torch.float64))
    objective = chosen.edit(Objective.from_batch(batch), batch, state)
    wanted = gradient(lm, responses, batch, chosen, objective, [slice(0, 32)])
    # 1e-12 of the gradient's norm
    near = {"rtol": 0, "atol": 1e-12 * wanted.norm().item()}
    assert wanted.norm() > 0

    for size in (1, 5, 16):
        found = gradient(lm, responses, batch, chosen, objective, grpo.micro_batches(32, size))
        torch.testing.assert_close(found, wanted, **near)

    order = torch.randperm(32, generator=torch.Generator().manual_seed(2))
    shuffled, rows = map_tensors(batch, lambda t: t[order]), responses[order]
    again = objective if name == "clip_cov" else None  # its draw goes by position, so only the edit is carried over
    edit = map_tensors(again, lambda t: t[order]) if again else chosen.edit(
        Objective.from_batch(shuffled), shuffled, state
    )  # fmt: skip
    found = gradient(lm, rows, shuffled, chosen, edit, grpo.micro_batches(32, 7))
    torch.testing.assert_close(found, wanted, **near)

    wide = map_tensors(batch, widened)
    long = replace(responses, tokens=widened(responses.tokens), mask=widened(responses.mask))
    edit = chosen.edit(Objective.from_batch(wide), wide, state)
    found = gradient(lm, long, wide, chosen, edit, [slice(0, 32)])
    torch.testing.assert_close(found, wanted, **near)


def test_a_kept_graph_gives_the_same_gradient_as_a_second_pass():
    lm = load_model("tiny", "float64")
    responses, batch = stale_minibatch(lm)
    none = build("none", {})
    objective, pieces = Objective.from_batch(batch), [slice(0, 32)]
    wanted = gradient(lm, responses, batch, none, objective, pieces)
    *found, graphs = grpo.minibatch_statistics(lm, responses, 1.0, none.activate, pieces, True)
    assert torch.equal(found[0], batch.logp) and torch.equal(found[1], batch.entropy)
    lm.model.zero_grad(set_to_none=True)
    grpo.accumulate_gradient(lm, responses, batch, objective, 1.0, none, pieces, graphs)
    assert torch.equal(torch.cat([p.grad.flatten() for p in lm.model.parameters()]), wanted)


def test_training_does_not_depend_on_the_micro_batch():
    config = replace(SMALL, dtype="float64", control="kl_cov", set={"kl_cov.fraction": 0.1})
    whole, parts = train(config), train(replace(config, micro_batch_rows=5))
    for a, b in zip(whole.lines, parts.lines, strict=True):
        # Adam divides by the gradient's size: a weight without gradient moves by lr in a direction of rounding
        assert a["entropy"].item() == pytest.approx(b["entropy"].item(), rel=1e-6)
        assert a["selected_tokens"] == b["selected_tokens"]
        assert torch.equal(a["reward"], b["reward"])


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


@pytest.mark.parametrize(("name", "save_every"), [("kl_cov", 1), ("clip_cov", 1), ("entropy_bonus", 1), ("kl_cov", 3)])
def test_a_killed_run_ends_in_the_same_bits(tmp_path, name, save_every):
    config = replace(SMALL, control=name, save_every=save_every)
    with Run(tmp_path / "whole", asdict(config)) as run:
        grpo.train_seed(config, 1, run)
    for kill in (1, 2, 3, 4):  # before and within the rollouts
        with pytest.raises(KeyboardInterrupt), Killed(tmp_path / "killed", asdict(config)) as run:
            run.kill = kill
            grpo.train_seed(config, 1, run)
    with Run(tmp_path / "killed", asdict(config)) as run:
        grpo.train_seed(config, 1, run)
        lines = (tmp_path / "killed" / "metrics.jsonl").read_bytes()
        grpo.train_seed(config, 1, run)  # a finished run stays as it is
    assert lines == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert lines == (tmp_path / "killed" / "metrics.jsonl").read_bytes()
    ends = [torch.load(tmp_path / n / "state.pt", weights_only=True)["state"] for n in ("whole", "killed")]
    for key, weight in ends[0]["model"].items():
        assert torch.equal(weight, ends[1]["model"][key])


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_precisions_train(dtype):
    memory = train(replace(SMALL, rollouts=1, dtype=dtype, lr=1e-2))
    assert all(math.isfinite(line["grad_norm"]) and line["grad_norm"] > 0 for line in memory.lines)
    assert memory.states[0]["rollout"]["old_logp"].dtype == (torch.float64 if dtype == "float64" else torch.float32)
    assert not torch.equal(weights(memory, 0), weights(memory, 1))


def test_seeds_differ_and_a_seed_repeats():
    assert torch.equal(weights(train(SMALL), -1), weights(train(SMALL), -1))
    assert not torch.equal(weights(train(SMALL), -1), weights(train(SMALL, seed=1), -1))


def test_progress_reports_rollouts():
    seen = []
    grpo.train_seed(SMALL, 0, Memory(), lambda done, total, line: seen.append((done, total, line["step"])))
    assert seen == [(1, 2, 2), (2, 2, 4)]


# --- logs -------------------------------------------------------------------------------------------------------------

LOGGED = {
    "step", "rollout", "temperature", "entropy", "sampled_entropy", "grad_norm", "reward", "response_length",
    "finished_share", "sampling_mismatch", "zero_advantage_share", "clip_fraction_low", "clip_fraction_high",
    "selected_tokens", "selected_share", "selected_negative_share", "cov_token_mean", "cov_token_p50",
    "cov_token_p99", "cov_token_max", "cov_group", "measured_entropy_change", "predicted_first_order",
    "predicted_second_order", "remainder_bound", "theorem_1_per_step_size", "theorem_2_per_step_size",
    "minibatch_entropy_change",
    *(f"{name}_{level}" for name in ("pass_rate", "cov_group") for level in tiny.DIFFICULTIES),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CONTROLS))
def test_every_control_trains_and_logs(tmp_path, name):
    config = replace(SMALL, control=name, advantage="rloo" if name == "none" else "grpo")
    with Run(tmp_path, asdict(config)) as run:
        grpo.train_seed(config, 0, run)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert set(line) >= LOGGED
        assert all(math.isfinite(v) for v in line.values())
        assert line["reward"] == pytest.approx(sum(line[f"pass_rate_{d}"] for d in tiny.DIFFICULTIES) / 4)
        assert abs(line["measured_entropy_change"] - line["predicted_first_order"]) <= line["remainder_bound"]
        assert line["measured_entropy_change"] != 0
    assert lines[0]["clip_fraction_low"] == lines[0]["clip_fraction_high"] == 0
    if name == "kl_cov":
        assert all(line["selected_tokens"] >= 1 for line in lines)


def test_minibatch_change_is_that_of_the_minibatch_between_two_states():
    """Recomputed from the saved weights before and after the second update, on its own half of the responses."""
    memory = train(replace(SMALL, dtype="float64"))
    lm = load_model("tiny", "float64")
    entropies = []
    for update in (0, 1):
        lm.model.load_state_dict(memory.states[update]["model"])
        responses = Responses(**memory.states[1]["rollout"]["responses"])[16:32]
        with torch.no_grad():
            entropies.append(forward(lm, responses, 1.0).entropy[responses.mask].mean().item())
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


# --- errors -----------------------------------------------------------------------------------------------------------


def test_what_the_world_lacks_is_named(monkeypatch):
    monkeypatch.setitem(CONTROLS, "needy", lambda: control(needs={Need.REF_LOGP}))
    with pytest.raises(ValueError, match="control needy needs ref_logp, which the llm world does not provide"):
        train(replace(SMALL, control="needy"))


def test_logit_scale_reaches_the_update(monkeypatch):
    def sharpen(objective, batch, state):
        return replace(objective, logit_scale=2 * objective.logit_scale)

    monkeypatch.setitem(CONTROLS, "scaled", lambda: control(sharpen, needs={Need.LOGIT_SCALE}))
    monkeypatch.setitem(CONTROLS, "unscaled", lambda: control(needs={Need.LOGIT_SCALE}))
    plain, unscaled, scaled = (train(replace(SMALL, rollouts=1, control=c)) for c in ("none", "unscaled", "scaled"))
    assert torch.equal(weights(plain, 0), weights(unscaled, 0))
    assert not torch.equal(weights(plain, 0), weights(scaled, 0))


def test_sampling_temperature_reaches_the_next_rollout(monkeypatch):
    def hotter(sampling, state):
        return replace(sampling, temperature=sampling.temperature * 1.5)

    monkeypatch.setitem(CONTROLS, "hot", lambda: control(sample=hotter, needs={Need.SAMPLING}))
    hot, warm = train(replace(SMALL, control="hot")), train(replace(SMALL, temperature=1.5))
    assert hot.lines[0]["temperature"] == 1.5
    assert torch.equal(weights(hot, -1), weights(warm, -1))


def test_nan_is_an_error_that_names_the_step(monkeypatch):
    broken = TASKS["tiny"]._replace(reward=lambda prompt, text, finished: math.nan)
    monkeypatch.setitem(TASKS, "broken", broken)
    with pytest.raises(ValueError, match="NaN or infinity in rewards at step 1"):
        train(replace(SMALL, task="broken"))
    with pytest.raises(ValueError, match=r"at step 2.*smaller lr"):
        train(replace(SMALL, lr=1e30))


def test_an_unknown_control_is_refused():
    with pytest.raises(ValueError, match="unknown control 'kl_cow'"):
        train(replace(SMALL, control="kl_cow"))
