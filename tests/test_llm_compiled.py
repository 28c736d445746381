"""Compiled blocks: transformers' numbers in float64, torch's rounding in float32, and torch's own where unknown."""

import copy
import importlib
import importlib.util
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import generators, texts_of_groups
from test_llm_packing import gradient, model_of, plain, responses_of
from transformers import Qwen2Config, Qwen3Config

from entropy_theory.draw import uniform
from llm import models
from llm.forward import Reading, forward, last_hidden
from llm.lora import add_lora
from llm.memory import autocast_decoder, checkpoint_blocks, use_threads
from llm.models import LanguageModel, load_model
from llm.samplers.cached import CachedSampler, make_decoder
from llm.samplers.choice import choose

pytest.importorskip("numba")

from llm.compiled import choice, crew, products, training
from llm.compiled.sampling import CompiledDecoder

WIDE = {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 128}
CASES = {
    "qwen2 shared keys": (Qwen2Config, {**WIDE, "num_attention_heads": 2, "num_key_value_heads": 1}),
    "qwen2 many keys": (Qwen2Config, {**WIDE, "num_attention_heads": 2, "num_key_value_heads": 2}),
    "qwen3": (Qwen3Config, {**WIDE, "head_dim": 16, "num_attention_heads": 6, "num_key_value_heads": 2}),
    "qwen3 biases": (
        Qwen3Config,
        {**WIDE, "head_dim": 32, "num_attention_heads": 3, "num_key_value_heads": 3, "attention_bias": True},
    ),
}
ROUNDING = 2e-11
"""As in test_llm_packing.py, where sums have at most half as many terms as here."""
LONG = [([2, 3, 4] * 13, [[5, 6] * 20, [7]]), ([3], [[4] * 70])]
"""More tokens than a piece of queries has, in a prompt and in responses."""


@contextmanager
def in_float64(case: str, threads: int = 1):
    """A model in float64 as transformers computes it, and compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "DTYPE", torch.float64)
        patch.setattr(crew, "_count", threads)
        yield pair_in_float64(case)


@lru_cache
def pair_in_float64(case: str) -> tuple[LanguageModel, LanguageModel]:
    lm = model_of(CASES[case][0], **CASES[case][1])
    ours = lm._replace(model=copy.deepcopy(lm.model))
    assert training.equip(ours.model.get_decoder())
    return lm, ours


def in_float32(case: str) -> tuple[LanguageModel, LanguageModel, LanguageModel]:
    """The same model in float64 and in float32 by transformers, and compiled in float32."""
    exact = model_of(CASES[case][0], **CASES[case][1])
    single = exact._replace(model=copy.deepcopy(exact.model).float())
    ours = exact._replace(model=copy.deepcopy(single.model))
    assert training.equip(ours.model.get_decoder())
    return exact, single, ours


@pytest.fixture
def threads(monkeypatch):
    """Sets the number of threads."""

    def use(count: int) -> None:
        monkeypatch.setattr(crew, "_count", count)

    return use


# --- training ---------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(texts_of_groups(), st.integers(1, 4))
@example(LONG, 1)
@example(LONG, 2)
@example([([2], [[3]])], 3)  # one token, of a prompt; more threads than groups
@pytest.mark.parametrize("case", CASES)
def test_hidden_states_and_gradients_are_those_of_transformers(case, groups, count):
    with in_float64(case, count) as (lm, ours):
        wanted = plain(lm, groups)
        slope = gradient(lm, wanted)
        found = last_hidden(ours, responses_of(groups))
        torch.testing.assert_close(found, wanted, rtol=0, atol=ROUNDING)
        torch.testing.assert_close(gradient(ours, found), slope, rtol=0, atol=ROUNDING * max(1.0, slope.norm().item()))


@pytest.mark.parametrize("case", CASES)
def test_float32_is_no_further_from_float64_than_torch(case):
    """Largest errors of both, of hidden states and of gradients; twice torch's, since orders of sums differ."""
    exact, single, ours = in_float32(case)
    responses = responses_of(LONG)
    hidden, slope = {}, {}
    for name, lm in (("exact", exact), ("torch", single), ("ours", ours)):
        hidden[name] = last_hidden(lm, responses)
        slope[name] = gradient(lm, hidden[name]).double()
    for found in (hidden, slope):
        worst = {name: (found[name].double() - found["exact"]).abs().max().item() for name in ("torch", "ours")}
        assert 0 < worst["ours"] <= 2 * worst["torch"]


def test_the_statistics_that_training_reads_are_torchs(threads):
    """All of the way: the tiny model's log-probabilities, entropies and the gradient of their sum."""
    threads(2)
    ours, theirs = load_model("tiny"), load_model("tiny", engine="torch")
    responses = responses_of(LONG)
    found = {}
    for name, lm in (("ours", ours), ("torch", theirs)):
        read = forward(lm, responses)
        (read.logp.sum() + read.entropy.sum()).backward()
        slope = torch.cat([p.grad.flatten() for p in lm.model.parameters()])
        found[name] = read.logp.detach(), read.entropy.detach(), slope / slope.norm()
    for one, two in zip(found["ours"], found["torch"], strict=True):
        # three blocks of some hundred roundings of 6e-8; seen: 3.5e-6 at log-probabilities down to -6
        torch.testing.assert_close(one, two, rtol=2e-5, atol=2e-5)
        assert not torch.equal(one, two)  # else one of them is not what it is called


@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_text_depends_on_those_beside_it(count):
    """Bit for bit, forward, whatever the number of threads and of texts."""
    texts = [([2, 3], [[4, 5, 6], [7, 7]]), ([5], [[2] * 40]), ([6, 6, 2], [[3, 3]])]
    with torch.no_grad():
        with in_float64("qwen3", count) as (_, ours):
            together = last_hidden(ours, responses_of(texts))
        with in_float64("qwen3") as (_, ours):
            alone = [last_hidden(ours, responses_of([group])) for group in texts]
    assert torch.equal(together, torch.cat(alone))


def test_checkpointed_blocks_give_the_same_gradient_bit_for_bit():
    _, _, one = in_float32("qwen3")
    two = one._replace(model=copy.deepcopy(one.model))
    checkpoint_blocks(two)
    assert torch.equal(*(gradient(lm, last_hidden(lm, responses_of(LONG))) for lm in (one, two)))


def test_a_graph_may_be_used_twice():
    _, _, ours = in_float32("qwen2 shared keys")
    found = last_hidden(ours, responses_of(LONG)).square().sum()
    weights = list(ours.model.get_decoder().parameters())
    once, again = (torch.autograd.grad(found, weights, retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, once, again))


def test_weights_that_are_changed_before_the_backward_pass_are_noticed():
    _, _, ours = in_float32("qwen2 shared keys")
    found = last_hidden(ours, responses_of(LONG)).sum()
    with torch.no_grad():
        ours.model.get_decoder().layers[0].mlp.up_proj.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.backward()


def test_scores_of_any_size_stay_finite():
    """Keys ten thousand times as large: softmax is one-hot, and exp of a difference of 1e5 is 0."""
    with in_float64("qwen2 many keys") as (_, ours):
        ours = ours._replace(model=copy.deepcopy(ours.model))
        with torch.no_grad():
            for layer in ours.model.get_decoder().layers:
                layer.self_attn.k_proj.weight.mul_(1e4)
        found = last_hidden(ours, responses_of(LONG))
        assert torch.isfinite(found).all() and torch.isfinite(gradient(ours, found)).all()


# --- where torch computes as ever -------------------------------------------------------------------------------------


class Compiled(Exception):
    """Raised in the place of compiled code."""


@pytest.fixture
def forbidden(monkeypatch):
    def refuse(*_):
        raise Compiled

    monkeypatch.setattr(training._Layer, "apply", refuse)


def read(lm) -> torch.Tensor:
    return last_hidden(lm, responses_of(LONG))


def test_compiled_code_is_used_where_it_can_be(forbidden):
    with pytest.raises(Compiled):
        read(load_model("tiny"))


def test_what_it_does_not_know_is_left_to_torch(forbidden):
    read(load_model("tiny", engine="torch"))
    read(load_model("tiny", "float64"))
    autocast = load_model("tiny")
    autocast_decoder(autocast)
    read(autocast)
    assert not isinstance(make_decoder(autocast), CompiledDecoder)
    pytest.importorskip("peft")
    read(add_lora(load_model("tiny"), 2, 4.0))


def test_dropout_is_left_to_torch(forbidden):
    lm = load_model("tiny")
    lm.model.train()
    with pytest.raises(Compiled):  # there is none
        read(lm)
    lm.model.get_decoder().layers[0].self_attn.attention_dropout = 0.1
    with torch.random.fork_rng(devices=[]), pytest.raises(Compiled):  # the second block has none
        read(lm)
    for layer in lm.model.get_decoder().layers:
        layer.self_attn.attention_dropout = 0.1
    with torch.random.fork_rng(devices=[]):
        read(lm)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (Qwen2Config, {**WIDE, "hidden_size": 24}),
        (Qwen2Config, {**WIDE, "hidden_act": "gelu"}),
        (Qwen2Config, {**WIDE, "use_sliding_window": True, "sliding_window": 2, "max_window_layers": 1}),
    ],
    ids=["widths", "activation", "windows"],
)
def test_models_it_does_not_know(kind, changes):
    lm = model_of(kind, **{"num_attention_heads": 2, "num_key_value_heads": 1, **changes})
    model = lm.model.float()
    before = [type(layer) for layer in model.get_decoder().layers]
    models.set_engine(model, "auto")
    assert [type(layer) for layer in model.get_decoder().layers] == before
    with pytest.raises(ValueError, match="engine 'numba' knows float32 models"):
        models.set_engine(model, "numba")


def test_engines_that_are_not_there(monkeypatch):
    with pytest.raises(ValueError, match="engine must be one of auto, torch, numba, got 'C'"):
        load_model("tiny", engine="C")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "numba" else find(name, *a))
    with pytest.raises(ValueError, match=r"pip install 'entropy-theory\[fast\]', or choose engine 'torch'"):
        load_model("tiny", engine="numba")
    assert not getattr(load_model("tiny").model.get_decoder(), "compiled", False)


def test_the_model_keeps_its_names():
    """Of weights, for checkpoints, and of the class of blocks, by which accelerate finds them."""
    one, two = load_model("tiny"), load_model("tiny", engine="torch")
    assert list(one.model.state_dict()) == list(two.model.state_dict())
    names = [{type(layer).__name__ for layer in lm.model.get_decoder().layers} for lm in (one, two)]
    assert names[0] == names[1] == {"Qwen2DecoderLayer"}
    assert len({type(layer) for layer in one.model.get_decoder().layers}) == 1


# --- sampling ---------------------------------------------------------------------------------------------------------


def uniforms(rows: int, steps: int, seed: int = 0) -> torch.Tensor:
    return uniform(torch.tensor(seed), torch.arange(rows), steps)


@settings(max_examples=15)
@given(
    st.lists(st.lists(st.integers(2, 8), min_size=1, max_size=20), min_size=1, max_size=4),
    st.integers(1, 3),
    st.sampled_from([0.5, 1.0, 1.7]),
    st.integers(1, 3),
    st.integers(0, 2**31),
)
@example([[2, 3], [4], [5] * 20], 50, 1.0, 2, 0)  # more rows than go through the blocks together
@pytest.mark.parametrize("case", CASES)
def test_tokens_are_those_of_torchs_decoder(case, prompts, group, temperature, count, seed):
    """Rows end at their own times and leave the batch. A token may differ where the random number is as near to an
    edge of the distribution as float32 rounds. Log-probabilities: two blocks of some hundred roundings, divided by a
    temperature down to .5; the largest difference seen was 1.8e-5."""
    _, single, ours = in_float32(case)
    numbers = uniforms(len(prompts) * group, 24, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crew, "_count", count)
        patch.setattr("llm.compiled.sampling.ENOUGH", 1)
        sampler = CachedSampler(ours)
        assert isinstance(sampler.decoder, CompiledDecoder)
        found = sampler.sample(prompts, group, 24, temperature, numbers)
    wanted = CachedSampler(single).sample(prompts, group, 24, temperature, numbers)
    same = (found.tokens == wanted.tokens).all(-1)
    assert same.float().mean() > 0.9 or same.sum() >= len(same) - 1
    torch.testing.assert_close(found.sampled_logp[same], wanted.sampled_logp[same], rtol=0, atol=1e-4)
    assert torch.equal(found.mask[same], wanted.mask[same])


def test_rows_do_not_depend_on_the_batch():
    """Bit for bit: other prompts beside it change nothing, though they change its padding and its place."""
    ours = in_float32("qwen3")[2]
    numbers = uniforms(3, 12)
    together = CachedSampler(ours).sample([[2, 3], [4, 5, 6, 7], [8]], 1, 12, 1.0, numbers)
    for row, prompt in enumerate(([2, 3], [4, 5, 6, 7], [8])):
        alone = CachedSampler(ours).sample([prompt], 1, 12, 1.0, numbers[row : row + 1])
        assert torch.equal(alone.sampled_logp[0], together.sampled_logp[row])
        assert torch.equal(alone.tokens[0], together.tokens[row])


def test_what_was_sampled_is_what_training_reads(threads):
    threads(2)
    lm = load_model("tiny")
    responses = CachedSampler(lm).sample([[2, 3, 4], [5, 6]], 8, 20, 1.3, uniforms(16, 20))
    with torch.no_grad():
        read = forward(lm, responses, Reading(temperature=1.3))
    gap = (read.logp - responses.sampled_logp)[responses.mask].abs().max().item()
    assert gap <= 2e-5  # see test_the_statistics_that_training_reads_are_torchs


def test_new_weights_are_read():
    lm = load_model("tiny")
    sampler = CachedSampler(lm)
    one = sampler.sample([[2, 3]], 4, 8, 1.0, uniforms(4, 8))
    with torch.no_grad():
        for weight in lm.model.parameters():
            weight.mul_(0.5)
    two = sampler.sample([[2, 3]], 4, 8, 1.0, uniforms(4, 8))
    assert torch.equal(two.sampled_logp, CachedSampler(lm).sample([[2, 3]], 4, 8, 1.0, uniforms(4, 8)).sampled_logp)
    assert not torch.equal(one.sampled_logp, two.sampled_logp)


def test_a_controls_activation_sees_the_logits():
    lm, plainly = load_model("tiny"), load_model("tiny", engine="torch")
    found, wanted = (
        CachedSampler(one).sample([[2, 3]], 4, 8, 1.0, uniforms(4, 8), lambda logits: 0.2 * logits)
        for one in (lm, plainly)
    )
    assert torch.equal(found.tokens, wanted.tokens)
    torch.testing.assert_close(found.sampled_logp, wanted.sampled_logp, rtol=0, atol=2e-5)
    assert not torch.allclose(
        found.sampled_logp, CachedSampler(lm).sample([[2, 3]], 4, 8, 1.0, uniforms(4, 8)).sampled_logp
    )


def test_nan_in_the_weights_is_said():
    lm = load_model("tiny")
    with torch.no_grad():
        lm.model.get_decoder().layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="NaN in the logits of response token 0"):
        CachedSampler(lm).sample([[2, 3]], 2, 8, 1.0, uniforms(2, 8))


@given(st.integers(1, 40), st.integers(1, 50), st.sampled_from([0.3, 1.0, 2.5]), st.booleans(), generators())
def test_a_choice_is_that_of_the_logits(rows, vocabulary, temperature, biased, rng):
    """In float64; x is its own norm up to rounding where the weight is 1 and its mean square too."""
    d = 16
    x = rng.normal(size=(rows, d))
    x /= np.sqrt((x**2).mean(-1, keepdims=True))
    head, bias = rng.normal(size=(vocabulary, d)), rng.normal(size=vocabulary)
    numbers = np.where(rng.random(rows) < 0.2, rng.choice([0.0, 1 - 2.0**-53], rows), rng.random(rows))
    tokens, logps = np.empty(rows, np.int64), np.empty(rows)
    laid_out = products.panels([head], True)
    wide = np.concatenate([bias, np.zeros(laid_out.size // d - vocabulary)]) if biased else bias[:0]
    cut = rng.integers(rows + 1)
    for part in (slice(cut), slice(cut, rows)):
        found = numbers[part], tokens[part], logps[part]
        choice.choose(x[part], np.ones(d), 0.0, laid_out, wide, vocabulary, temperature, *found)
    logits = torch.from_numpy((x @ head.T + bias * biased) / temperature)
    wanted, logp = choose(logits, torch.from_numpy(numbers))
    assert (tokens == wanted.numpy()).all()
    np.testing.assert_allclose(logps, logp.numpy(), rtol=0, atol=1e-12 / temperature)


# --- products, threads ------------------------------------------------------------------------------------------------


@given(
    st.sampled_from([np.float32, np.float64]),
    st.integers(1, 21),
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.integers(1, 5),
    generators(),
)
def test_products_by_panels_are_sums_in_order(number, rows, parts, vectors, rng):
    """C + A W and C + A W^T of stacked W, each element a chain of roundings; columns beyond W's add 0."""
    wide = vectors * products.padded(1, number().itemsize)
    stacked = [rng.normal(size=(n, wide)).astype(number) for n in parts]
    weight, unit = np.concatenate(stacked), float(np.finfo(number).eps) / 2
    for turned, b in ((False, weight), (True, weight.T)):
        a = rng.normal(size=(rows, len(b))).astype(number)
        columns = products.padded(b.shape[1], number().itemsize)
        out = rng.normal(size=(rows, columns)).astype(number)
        before = out.copy()
        products.add_panels(a, products.panels(stacked, turned), out)
        size = abs(before[:, : b.shape[1]]) + abs(a).astype(np.longdouble) @ abs(b)
        exact = before[:, : b.shape[1]] + a.astype(np.longdouble) @ b
        assert (abs(out[:, : b.shape[1]] - exact) <= (len(b) + 1) * unit * size).all()
        assert (out[:, b.shape[1] :] == before[:, b.shape[1] :]).all()


def test_no_two_compiled_functions_share_a_name():
    """Code that is kept on disk is linked by name, and one would be taken for the other."""
    found = [value for module in MODULES for value in vars(module).values() if hasattr(value, "py_func")]
    names = {(f.py_func.__module__, f.py_func.__qualname__): f for f in found}
    assert len(names) == len({id(f) for f in found}) > 20


MODULES = [
    importlib.import_module(f"llm.compiled.{name}")
    for name in ("products", "parts", "attention", "blocks", "decoding", "choice")
]


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=30), st.integers(0, 40))
def test_runs_cover_all_items_and_none_is_empty(weights, parts):
    found = crew.runs(weights, parts)
    assert found[0][0] == 0 and found[-1][1] == len(weights) and len(found) <= max(parts, 1)
    assert all(first < end for first, end in found) and all(a[1] == b[0] for a, b in pairwise(found))
    heaviest = max(sum(weights[first:end]) for first, end in found)
    assert heaviest <= sum(weights) / max(parts, 1) * (1 + 1e-9) + max(weights)


def test_an_error_of_any_thread_is_raised():
    done = []

    def run(part: int) -> None:
        if part == 2:
            raise KeyError("two")
        done.append(part)

    with pytest.raises(KeyError, match="two"):
        crew.side_by_side(run, [0, 1, 2, 3])
    assert sorted(done) == [0, 1, 3]


def test_a_small_model_leaves_its_threads_to_compiled_code(monkeypatch):
    monkeypatch.setattr(crew, "_count", None)
    kept = torch.get_num_threads()
    try:
        use_threads(load_model("tiny", engine="torch"), 2)
        assert torch.get_num_threads() == 2 == crew.threads()
        use_threads(load_model("tiny"), 2)
        assert torch.get_num_threads() == 1 and crew.threads() == 2
        crew.share_threads(3, crew.SMALL + 1)
        assert torch.get_num_threads() == 3 == crew.threads()
    finally:
        torch.set_num_threads(kept)
