"""The GRPO loop: gradients that do not depend on how the batch is cut, resume, on-policy facts, logs, errors."""

import math
from dataclasses import asdict, replace

import contract
import numpy as np
import pytest
import torch
from contract import CONTRACT

from entropy_theory.advantage import grpo as grpo_advantage
from entropy_theory.aggregation import AGGREGATIONS
from entropy_theory.control import Need, control
from entropy_theory.controls import CONTROLS, build
from entropy_theory.records import Batch, Objective, Penalty, map_tensors
from entropy_theory.runs import Run, read_metrics
from entropy_theory.surrogate import SURROGATES
from llm import grpo
from llm.config import ADVANTAGES, TrainConfig
from llm.kernel import in_float64
from llm.models import LanguageModel, load_model
from llm.probe import probe_states
from llm.rollout import Responses, chosen_logp, forward, sample, token_collision
from llm.tasks import TASKS, tiny
from llm.update import PLAIN, Loss, accumulate_gradient, micro_batches, minibatch_statistics

SMALL = TrainConfig(
    rollouts=2, prompts_per_rollout=8, group_size=4, updates_per_rollout=2, probe_responses=8, device="cpu", lr=1e-3
)


ROUNDING = 1e-6
"""Bound on |difference| of log-probabilities, nats, between two orders of the same sums: transformers' norms compute in
float32 (6e-8), of activations that three layers add up."""


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


@pytest.fixture(scope="module")
def stale() -> tuple[LanguageModel, Responses, Batch]:
    """A model, 32 responses that it sampled a step ago, and their record with all that a control may ask for.

    The reference is the model two such steps ago; the filtered policy is without actions below .3 of the likeliest.
    """
    lm, reference = (in_float64(load_model("tiny", "float64")) for _ in range(2))
    with_noise(reference, 3)
    questions = tiny.make_prompts(8, 5, 0)
    responses = sample(lm, [q.text for q in questions], 4, 28, 1.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        sampling, ref_logp = forward(lm, responses, 1.0), forward(reference, responses, 1.0).logp
        logp, entropy, logits = forward(with_noise(lm, 1), responses, 1.0)
    reward = (torch.arange(32) * 7 % 3 == 0).double()
    group = torch.arange(32) // 4
    batch = Batch(
        logp=logp,
        old_logp=sampling.logp,
        advantage=grpo_advantage(reward, group).unsqueeze(-1).expand_as(logp),
        mask=responses.mask,
        entropy=entropy,
        outcome=reward,
        group=group,
        ref_logp=ref_logp,
        proxy_logp=chosen_logp(likely(sampling.logits), responses),
        collision=token_collision(logits, responses.mask),
        micro_batch=torch.arange(32) // 16,
    )
    return lm, responses, batch


def with_noise(lm: LanguageModel, seed: int) -> LanguageModel:
    """The model, each of its weights moved by about .01."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return lm


def likely(logits: torch.Tensor, share: float = 0.3) -> torch.Tensor:
    """Logits without the actions less likely than `share` of the likeliest."""
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(share), -math.inf)


def gradient(lm, responses, batch, edited, objective, pieces, form=PLAIN, graphs=None) -> torch.Tensor:
    lm.model.zero_grad(set_to_none=True)
    accumulate_gradient(lm, responses, batch, objective, 1.0, edited, pieces, graphs, form)
    return torch.cat([p.grad.flatten() for p in lm.model.parameters()])


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """Five more columns of padding for what is [rows, tokens]; they hold ones, which nothing may read."""
    if tensor.dim() < 2:
        return tensor
    fill = torch.ones(len(tensor), 5, dtype=tensor.dtype)
    return torch.cat([tensor, torch.zeros_like(fill) if tensor.dtype == torch.bool else fill], -1)


@pytest.mark.parametrize("name", sorted(CONTROLS))
def test_gradient_does_not_depend_on_split_row_order_or_padding(stale, name):
    lm, responses, batch = stale
    chosen = contract.build(name)
    state = contract.start(chosen, batch, CONTRACT[name].steps)
    objective = chosen.edit(Objective.from_batch(batch), batch, state)
    wanted = gradient(lm, responses, batch, chosen, objective, [slice(0, 32)])
    # 1e-12 of the gradient's norm
    near = {"rtol": 0, "atol": 1e-12 * wanted.norm().item()}
    assert wanted.norm() > 0

    for size in (1, 5, 16):
        found = gradient(lm, responses, batch, chosen, objective, micro_batches(32, size))
        torch.testing.assert_close(found, wanted, **near)

    # draws and ties go by position (the first tokens of a group share a state), so the edit moves with the rows
    order = torch.randperm(32, generator=torch.Generator().manual_seed(2))
    shuffled, edit = map_tensors(batch, lambda t: t[order]), map_tensors(objective, lambda t: t[order])
    found = gradient(lm, responses[order], shuffled, chosen, edit, micro_batches(32, 7))
    torch.testing.assert_close(found, wanted, **near)

    wide = map_tensors(batch, widened)
    long = replace(responses, tokens=widened(responses.tokens), mask=widened(responses.mask))
    edit = chosen.edit(Objective.from_batch(wide), wide, state)
    if not CONTRACT[name].drawn:
        found = gradient(lm, long, wide, chosen, edit, [slice(0, 32)])
        torch.testing.assert_close(found, wanted, **near)


@pytest.mark.parametrize("aggregation", sorted(AGGREGATIONS))
@pytest.mark.parametrize("surrogate", sorted(SURROGATES))
def test_no_surrogate_or_aggregation_depends_on_the_split(stale, surrogate, aggregation):
    lm, responses, batch = stale
    objective, none = Objective.from_batch(batch), build("none", {})
    form = Loss(surrogate, aggregation, 28)
    wanted = gradient(lm, responses, batch, none, objective, [slice(0, 32)], form)
    assert wanted.norm() > 0
    for size in (1, 7, 16):
        found = gradient(lm, responses, batch, none, objective, micro_batches(32, size), form)
        # 1e-12 of the gradient's norm
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12 * wanted.norm().item())


def test_aggregations_weigh_the_gradients_of_whole_responses(stale):
    """With g_i the gradient of the token mean of response i alone, and l_i its length."""
    lm, responses, batch = stale
    none, lengths = build("none", {}), batch.mask.sum(-1).tolist()
    alone = []
    for piece in micro_batches(32, 1):
        one = map_tensors(batch, lambda t, piece=piece: t[piece])
        alone.append(gradient(lm, responses[piece], one, none, Objective.from_batch(one), [slice(0, 1)]))
    weights = {
        "token-mean": [length / sum(lengths) for length in lengths],
        "seq-mean-token-mean": [1 / 32] * 32,
        "seq-mean-token-sum": [length / 32 for length in lengths],
        "constant": [length / 32 / 28 for length in lengths],
    }
    for aggregation in AGGREGATIONS:
        wanted = sum(weight * g for weight, g in zip(weights[aggregation], alone, strict=True))
        found = gradient(
            lm, responses, batch, none, Objective.from_batch(batch), [slice(0, 32)], Loss("ppo", aggregation, 28)
        )
        # 1e-12 of the gradients' norms
        size = sum(weight * g.norm().item() for weight, g in zip(weights[aggregation], alone, strict=True))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12 * size)


def test_a_kept_graph_gives_the_same_gradient_as_a_second_pass(stale):
    lm, responses, batch = stale
    objective, pieces = Objective.from_batch(batch), [slice(0, 32)]
    objective = replace(objective, entropy_coef=objective.entropy_coef + 0.3)
    filtered = control(entropy_support=likely, needs={Need.ENTROPY_SUPPORT, Need.ENTROPY_GRAD})
    gradients = []
    for chosen in (build("none", {}), filtered):
        wanted = gradient(lm, responses, batch, chosen, objective, pieces)
        *found, graphs = minibatch_statistics(lm, responses, 1.0, chosen, pieces, True)
        assert torch.equal(found[0], batch.logp) and torch.equal(found[1], batch.entropy)
        assert torch.equal(gradient(lm, responses, batch, chosen, objective, pieces, graphs=graphs), wanted)
        gradients.append(wanted)
    assert not torch.equal(*gradients)


def test_entropy_bonus_of_a_support_is_that_of_the_policy_within_it(stale):
    """Row by row without padding or batch, the policy renormalised over the actions that stay."""
    lm, responses, batch = stale
    nothing = Objective.from_batch(replace(batch, advantage=torch.zeros_like(batch.advantage)))
    objective = replace(nothing, entropy_coef=nothing.entropy_coef + 1.0)
    filtered = control(entropy_support=likely, needs={Need.ENTROPY_SUPPORT, Need.ENTROPY_GRAD})
    found = gradient(lm, responses, batch, filtered, objective, micro_batches(32, 16))

    lm.model.zero_grad(set_to_none=True)
    kept = 0
    for i in range(32):
        start = int(responses.prompt_length[i])
        prompt = responses.prompt[i, responses.prompt.shape[1] - start :].tolist()
        answer = responses.tokens[i][responses.mask[i]].tolist()
        logits = lm.model(input_ids=torch.tensor([prompt + answer])).logits[0]
        for t in range(len(answer)):
            z = logits[start - 1 + t]
            p = torch.exp(z - z.max()) / torch.exp(z - z.max()).sum()
            stays = p.detach() >= 0.3 * p.detach().max()
            inside = p[stays] / p[stays].sum()
            kept += int(stays.sum())
            ((inside * torch.log(inside)).sum() / int(batch.mask.sum())).backward(retain_graph=True)
    wanted = torch.cat([p.grad.flatten() for p in lm.model.parameters()])
    assert int(batch.mask.sum()) < kept < 20 * int(batch.mask.sum())
    # 1e-11 of the gradient's norm: sums of a thousand terms that partly cancel
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11 * wanted.norm().item())


def test_training_does_not_depend_on_the_micro_batch():
    config = replace(SMALL, dtype="float64", control="kl_cov", set={"kl_cov.fraction": 0.1})
    whole, parts = train(config), train(replace(config, micro_batch_rows=5))
    for a, b in zip(whole.lines, parts.lines, strict=True):
        # Adam divides by the gradient's size: a weight without gradient moves by lr in a direction of rounding
        assert a["entropy"].item() == pytest.approx(b["entropy"].item(), rel=1e-6)
        assert a["selected_tokens"] == b["selected_tokens"]
        assert torch.equal(a["reward"], b["reward"])


# --- what a control is given ------------------------------------------------------------------------------------------


def pulled(batches=None):
    """Factory of a control that pulls towards the reference and the filtered policy, and keeps what it is given."""

    def edit(objective, batch, state):
        if batches is not None:
            batches.append(batch)
        coef = torch.full_like(batch.logp, 0.1)
        reachable = torch.isfinite(batch.proxy_logp)
        penalties = (
            Penalty(coef * batch.collision, batch.ref_logp, "k2"),
            Penalty(coef * reachable, batch.proxy_logp, "k3"),
        )
        return replace(objective, penalties=(*objective.penalties, *penalties))

    return lambda: control(edit, proxy=likely, needs={Need.REF_LOGP, Need.PROXY_LOGP, Need.COLLISION})


def plain_softmax(lm, responses: Responses, temperature: float):
    """The policy at every valid token, [actions], row by row without padding or batch, and the token; NumPy."""
    for i in range(len(responses)):
        start = int(responses.prompt_length[i])
        prompt = responses.prompt[i, responses.prompt.shape[1] - start :].tolist()
        answer = responses.tokens[i][responses.mask[i]].tolist()
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([prompt + answer])).logits[0].numpy()
        for t, token in enumerate(answer):
            p = np.exp((logits[start - 1 + t] - logits[start - 1 + t].max()) / temperature)
            yield (i, t), p / p.sum(), token


def test_reference_filtered_policy_and_collision_are_those_of_full_softmaxes(monkeypatch):
    batches = []
    monkeypatch.setitem(CONTROLS, "pulled", pulled(batches))
    config = replace(SMALL, dtype="float64", control="pulled", temperature=1.3, micro_batch_rows=7)
    memory = train(config)
    first, sampler, now = (load_model("tiny", "float64") for _ in range(3))
    left_out = 0
    for update, (batch, state) in enumerate(zip(batches, memory.states, strict=True)):
        part = slice(16 * (update % 2), 16 * (update % 2) + 16)
        responses = Responses(**state["rollout"]["responses"])[part]
        for lm, before in ((sampler, update - update % 2), (now, update)):
            if before:
                lm.model.load_state_dict(memory.states[before - 1]["model"])
        for place, p, token in plain_softmax(first, responses, 1.3):
            assert batch.ref_logp[place].item() == pytest.approx(math.log(p[token]), abs=ROUNDING)
        for place, p, token in plain_softmax(sampler, responses, 1.3):
            kept = p >= 0.3 * p.max()
            left_out += not kept[token]
            wanted = math.log(p[token] / p[kept].sum()) if kept[token] else -math.inf
            assert batch.proxy_logp[place].item() == pytest.approx(wanted, abs=ROUNDING)
        for place, p, _ in plain_softmax(now, responses, 1.3):
            centred = np.log(p) - (p * np.log(p)).sum()
            assert batch.collision[place].item() == pytest.approx((p * p * centred).sum(), abs=ROUNDING)
        assert batch.micro_batch.tolist() == [0] * 7 + [1] * 7 + [2] * 2
    assert left_out > 0


def test_what_is_not_needed_is_not_there(monkeypatch):
    batches = []
    monkeypatch.setitem(
        CONTROLS, "watch", lambda: control(lambda objective, batch, _: batches.append(batch) or objective)
    )
    memory = train(replace(SMALL, control="watch"))
    for batch, state in zip(batches, memory.states, strict=True):
        assert batch.ref_logp is None and batch.proxy_logp is None and batch.collision is None
        assert state["rollout"]["ref_logp"] is None and state["rewards"] is None


def test_the_reference_is_the_policy_at_first(monkeypatch):
    """Bit for bit, also with several micro-batches, so that no penalty on |log ratio| acts before the first step."""
    batches = []
    monkeypatch.setitem(CONTROLS, "pulled", pulled(batches))
    train(replace(SMALL, control="pulled", micro_batch_rows=5))
    assert torch.equal(batches[0].ref_logp, batches[0].logp)
    assert not torch.equal(batches[1].ref_logp, batches[1].logp)


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
    "evaluated": {"eval_prompts": 3, "eval_samples": 2, "control": "temperature"},
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_killed_run_ends_in_the_same_bits(tmp_path, monkeypatch, case):
    monkeypatch.setitem(CONTROLS, "pulled", pulled())
    config = replace(SMALL, **{"control": case.split()[0], **RESUMED[case]})
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
    one, two = (list(tensors(end)) for end in ends)
    assert len(one) == len(two) > len(ends[0]["model"])
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


def test_one_update_per_rollout_leaves_idle_what_waits_for_stale_ratios():
    config = replace(SMALL, updates_per_rollout=1, clip_high=0.01, lr=3e-3)
    plain, higher = (train(replace(config, control=name)) for name in ("none", "clip_higher"))
    assert len(plain.lines) == 2 and Need.STALE not in grpo.provides(config)
    assert torch.equal(weights(plain, -1), weights(higher, -1))
    assert not torch.equal(weights(plain, 0), weights(plain, 1))


@pytest.mark.parametrize("name", sorted(set(CONTROLS) - {"none"}))
def test_every_control_changes_a_run_of_three_updates(name):
    """With the parameters of the contract table, all updates from one rollout; finite and moving."""
    rollouts = 2 if name == "temperature" else 1  # it acts on the next rollout only
    config = replace(SMALL, rollouts=rollouts, prompts_per_rollout=6, updates_per_rollout=3, probe_every=0)
    config = replace(config, lr=3e-3, clip_high=0.01)  # so that one step reaches the clip
    settings = {f"{name}.{parameter}": value for parameter, value in CONTRACT[name].acting.items()}
    if name == "adaptive_entropy":  # the model starts at .4 nats
        settings["adaptive_entropy.target"] = 1.0
    plain, memory = train(config), train(replace(config, control=name, set=settings))
    assert all(torch.isfinite(weights(memory, update)).all() for update in range(3))
    assert len({weights(memory, update).sum().item() for update in range(3)}) == 3
    assert not torch.equal(weights(plain, -1), weights(memory, -1))


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
    settings = {f"{name}.{parameter}": value for parameter, value in CONTRACT[name].acting.items()}
    config = replace(SMALL, control=name, set=settings, advantage="rloo" if name == "none" else "grpo")
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
    monkeypatch.setitem(CONTROLS, "needy", lambda: control(needs={Need.STALE}))
    with pytest.raises(ValueError, match="control needy needs several updates per rollout, which the llm world does"):
        train(replace(SMALL, control="needy", updates_per_rollout=1))


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
