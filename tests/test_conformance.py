"""The golden batches are what they say, our own functions agree with them, and wrong ones are seen."""

import json
import math
from fractions import Fraction

import exact
import make_golden
import mpmath
import numpy as np
import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st
from ours import OURS

from entropy_theory import conformance
from entropy_theory.conformance import DTYPES, INPUTS, QUANTITIES, batches, compare, golden, rounding
from entropy_theory.conformance.compare import precision_of
from entropy_theory.controls import CONTROLS
from entropy_theory.loss import minibatch_loss, token_loss
from entropy_theory.records import Batch, Objective

BATCHES = batches()
TORCH = {name: getattr(torch, name) for name in DTYPES}
LOSSES = ("ppo", "clip_higher", "clip_cov", "kl_cov", "entropy_bonus")


def by_name(batch):
    return batch.name


# --- the batches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", BATCHES, ids=by_name)
def test_the_generator_makes_the_stored_numbers_again(batch):
    made = make_golden.make(batch.name)
    assert made.keys() == batch.arrays.keys()
    for name, array in made.items():
        stored = batch[name]
        assert array.dtype == stored.dtype and array.shape == stored.shape, name
        assert array.tobytes() == stored.tobytes(), name


def test_the_index_is_the_generators():
    index = conformance.index()
    assert index["format_version"] == make_golden.FORMAT_VERSION == golden.FORMAT_VERSION
    assert index["units"] == make_golden.UNITS
    assert [e["name"] for e in index["batches"]] == list(make_golden.SPECS) == [b.name for b in BATCHES]
    for entry, batch in zip(index["batches"], BATCHES, strict=True):
        spec = make_golden.SPECS[batch.name]
        assert entry["purpose"] == batch.purpose == spec.purpose
        assert entry["hyper"] == batch.hyper == make_golden.hyper_of(spec)
        assert entry["valid_tokens"] == batch.tokens
        assert batch["logits"].shape == (entry["rows"], entry["steps"], entry["vocabulary"])


@pytest.mark.parametrize("batch", BATCHES, ids=by_name)
def test_what_the_comparison_takes_for_granted(batch):
    valid = batch["logits"][batch["mask"]]
    assert torch.equal(torch.tensor(valid).bfloat16().double(), torch.tensor(valid))  # exact in every dtype
    for name in INPUTS:
        if name != "logits":
            assert np.isfinite(batch[name]).all(), name  # garbage, but never NaN
    clips = [
        {k: v for k, v in batch.hyper[name].items() if k.startswith("clip")} for name in LOSSES if name != "kl_cov"
    ]
    ppo, _, *others = clips
    assert all(clip == ppo for clip in others)  # token_surrogate serves all of them
    assert batch["mask"][slice(*batch.micro_batches[0])].any()
    assert [row for part in batch.micro_batches for row in range(*part)] == list(range(len(batch["mask"])))


def test_each_batch_holds_what_its_purpose_says():
    found = {b.name: b for b in BATCHES}
    assert np.array_equal(found["fresh"]["logp"], found["fresh"]["old_logp"])
    valid = found["stale"]["mask"]
    r, adv = np.exp(found["stale"]["logp"] - found["stale"]["old_logp"])[valid], found["stale"]["advantage"][valid]
    assert (r[adv > 0] > 1.28).any() and (r[adv < 0] < 0.8).any()
    assert ((r > 1.2) & (r < 1.28) & (adv > 0)).any() and ((r > 3) & (adv < 0)).any()
    lengths = found["ragged"]["mask"].sum(-1)
    assert 0 in lengths and len(set(lengths)) > 3
    garbage = found["ragged"]["mask"] == 0
    assert np.abs(found["ragged"]["advantage"][garbage]).min() == 1e6
    garbage = found["overflow"]["mask"] == 0
    assert ((found["overflow"]["logp"] - found["overflow"]["old_logp"])[garbage] > 709).any()
    scores = np.sort(found["ties"]["score"][found["ties"]["mask"]])[::-1]
    k = int(found["ties"]["kl_cov_count"])
    assert scores[k - 1] == scores[k]
    assert not found["zero_covariance"]["score"].any() and found["zero_covariance"]["clip_cov_count"] == 0
    assert found["one_token"].tokens == 1
    possible = np.isfinite(found["masked_logits"]["logits"][found["masked_logits"]["mask"]]).sum(-1)
    assert possible.min() == 1 and possible.max() == 11
    micro = found["micro_batches"]
    parts = [int(micro["mask"][slice(*part)].sum()) for part in micro.micro_batches]
    per_part = sum(max(1, int(micro.hyper["kl_cov"]["fraction"] * n)) for n in parts)
    assert per_part == 8 and micro["kl_cov_count"] == 1 and len(set(parts)) > 1


def test_a_batch_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        BATCHES[0]["logits"][...] = 0.0


def test_an_unknown_batch_is_refused():
    with pytest.raises(ValueError, match="no golden batch 'frehs'; the batches are fresh, stale"):
        batches("frehs")


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("fresh.npz", lambda data: data[:-1] + b"!", "fresh.npz is not the file its index describes"),
        ("index.json", lambda data: data.replace(b'"format_version": 1', b'"format_version": 2'), "format 2"),
    ],
)
def test_other_data_than_the_index_describes_is_refused(monkeypatch, file, change, words):
    read = golden._read
    monkeypatch.setattr(golden, "_read", lambda name: change(read(name)) if name == file else read(name))
    golden._load.cache_clear()
    with pytest.raises(ValueError, match=words):
        batches("fresh")
    golden._load.cache_clear()


def test_export_gives_every_number_back(tmp_path):
    written = conformance.export(tmp_path / "new")
    assert len(written) == 1 + 2 * len(BATCHES) and all(path.is_file() for path in written)
    for batch in BATCHES:
        plain = json.loads((tmp_path / "new" / f"{batch.name}.json").read_text())
        for name, array in batch.arrays.items():
            flat = np.array(plain[name], dtype=object).reshape(-1)
            assert np.array([float(v) for v in flat]).tobytes() == array.astype(np.float64).tobytes(), name


def test_export_to_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; name a folder"):
        conformance.export(tmp_path / "file")


def test_the_listing_names_every_batch_and_the_documentation_too():
    page = (make_golden.FOLDER.parent.parent.parent / "docs" / "conformance.md").read_text()
    for batch in BATCHES:
        assert f"| `{batch.name}` | {batch.tokens} | {batch.purpose} |" in page
        assert batch.purpose in conformance.listing()
    for name in QUANTITIES:
        assert f"`{name}`" in page


# --- our own functions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_our_own_functions_agree(dtype):
    assert set(OURS) == set(QUANTITIES)
    compare(OURS, dtype).raise_for_differences()


@pytest.mark.parametrize("name", ["clip_cov", "kl_cov"])
@pytest.mark.parametrize("batch", BATCHES, ids=by_name)
def test_our_selection_is_the_stored_one(name, batch):
    """In float64, draws and ties included; of KL-Cov where a gradient shows it."""
    seen = {}

    def spy(**arguments):
        loss = OURS[name](**arguments)
        (seen["gradient"],) = torch.autograd.grad(loss, arguments["logp"], retain_graph=True)
        return loss

    compare({name: spy}, names=(batch.name,))
    exact_gradient = batch["ppo_gradient"] if name == "clip_cov" else batch["token_ratio"] / batch.tokens
    gradient = seen["gradient"].numpy()
    if name == "clip_cov":
        selected = (exact_gradient != 0) & (gradient == 0)
    else:
        selected = np.abs(gradient - exact_gradient) > batch.hyper["kl_cov"]["coef"] / (2 * batch.tokens)
    visible = np.ones_like(selected) if name == "clip_cov" else batch["token_distance"] > 0
    assert np.array_equal(selected & visible, batch[f"{name}_selected"] & visible)


@pytest.mark.parametrize("name", ["none", "clip_cov", "kl_cov"])
def test_our_micro_batches_add_up_to_the_whole(name):
    """The edit sees the minibatch; loss and gradient are then taken one micro-batch after the other."""
    (batch,) = batches("micro_batches")
    quantity = "ppo" if name == "none" else name

    def split(logp, old_logp, advantage, mask, tokens, **hyper):
        hyper = {k: v for k, v in hyper.items() if not k.startswith("clip_")}
        control, nothing = CONTROLS[name](**hyper), torch.zeros(len(mask), dtype=logp.dtype)
        whole = Batch(logp.detach(), old_logp, advantage, mask, torch.zeros_like(advantage), nothing, nothing.long())
        objective = control.edit(Objective.from_batch(whole), whole, control.init(torch.zeros(())))
        loss = token_loss(logp, torch.zeros_like(logp), whole, objective)
        parts = [minibatch_loss(loss[slice(*part)], torch.tensor(tokens)) for part in batch.micro_batches]
        gradients = [torch.autograd.grad(part, logp, retain_graph=True)[0] for part in parts]
        return sum(parts), sum(gradients)

    compare({quantity: split}, names=("micro_batches",)).raise_for_differences()


# --- wrong functions are seen ---------------------------------------------------------------------------------------


def _naive_entropy(logits):
    logp = torch.log_softmax(logits, -1)
    return -(logp.exp() * logp).sum(-1)


def _clip_cov(change):
    """Our Clip-Cov with one of its arguments changed."""
    return lambda **arguments: OURS["clip_cov"](**arguments | change(arguments))


def _kl_cov(change):
    return lambda **arguments: OURS["kl_cov"](**arguments | change(arguments))


def _masked_gradient(**arguments):
    return OURS["ppo"](**arguments) + 1e-9 * arguments["logp"].sum()


def _mean_of_rows(logp, old_logp, advantage, mask, tokens, clip_low, clip_high):
    ratio = torch.exp(torch.where(mask, logp - old_logp, 0.0))
    a = torch.where(mask, advantage, 0.0)
    loss = -torch.minimum(ratio * a, ratio.clamp(1 - clip_low, 1 + clip_high) * a)
    return (loss.sum(-1) / mask.sum(-1).clamp(min=1)).mean()


def _detached_bonus(logits, **arguments):
    coef = arguments.pop("coef")
    whole = OURS["entropy_bonus"](logits=logits, coef=0.0, **arguments)
    h = torch.where(arguments["mask"], OURS["entropy"](logits).detach(), 0.0)
    return whole - coef * h.sum() / arguments["tokens"]


def _unclipped(**arguments):
    return OURS["ppo"](**arguments | {"clip_low": 1e9, "clip_high": 1e9})


WRONG = {
    "an entropy that is NaN at -inf": ("entropy", _naive_entropy, {"masked_logits"}),
    "an entropy off by a thousandth": ("entropy", lambda logits: OURS["entropy"](logits) * 1.001, {"stale"}),
    "an entropy at another temperature": ("entropy", lambda logits: OURS["entropy"](logits / 1.01), {"stale"}),
    "a log-probability of the wrong action": (
        "log_prob",
        lambda logits, action: OURS["log_prob"](logits, (action + 1) % logits.shape[-1]),
        {"stale"},
    ),
    "an unmasked mean": (
        "score",
        lambda logp, advantage, mask: OURS["score"](logp, advantage, torch.ones_like(mask)),
        {"ragged"},
    ),
    "a covariance over n - 1": (
        "covariance",
        lambda logp, advantage, mask: OURS["covariance"](logp, advantage, mask) * mask.sum() / (mask.sum() - 1),
        {"stale"},
    ),
    "a population standard deviation": (
        "grpo",
        lambda reward, group, eps: OURS["grpo"](reward, group, eps) * math.sqrt(4 / 3),
        {"stale"},
    ),
    "no clip": ("ppo", _unclipped, {"stale"}),
    "the lower of the two upper clips": (
        "clip_higher",
        lambda **arguments: OURS["ppo"](**arguments | {"clip_high": 0.2}),
        {"stale"},
    ),
    "a gradient under the mask": ("ppo", _masked_gradient, {"ragged"}),
    "a mean over rows": ("ppo", _mean_of_rows, {"ragged"}),
    "a bonus without gradient": ("entropy_bonus", _detached_bonus, {"stale"}),
    "one token more dropped": (
        "clip_cov",
        _clip_cov(lambda arguments: {"fraction": arguments["fraction"] + 1.01 / arguments["tokens"]}),
        {"stale"},
    ),
    "a percentage for a fraction": ("kl_cov", _kl_cov(lambda a: {"fraction": a["fraction"] / 100}), {"stale"}),
    "another band": ("clip_cov", _clip_cov(lambda _: {"low": -9.0, "high": 0.0}), {"stale"}),
    "nothing dropped": ("clip_cov", _clip_cov(lambda _: {"low": 98.0, "high": 99.0}), {"stale"}),
    "the lowest scores penalised": (
        "kl_cov",
        lambda **a: OURS["kl_cov"](**a | {"advantage": -a["advantage"]}),
        {"stale"},
    ),
    "a coefficient of a tenth": ("kl_cov", _kl_cov(lambda _: {"coef": 0.1}), {"stale"}),
    "a squared distance": (
        "kl_cov",
        lambda **a: OURS["kl_cov"](**a | {"coef": 0.0}) + (a["logp"] - a["old_logp"]).square()[a["mask"]].mean() / 2,
        {"stale"},
    ),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_function_differs(fault, dtype):
    name, function, expected = WRONG[fault]
    report = compare({name: function}, dtype)
    assert expected <= {row.batch for row in report.differences()}
    with pytest.raises(AssertionError, match=name):
        report.raise_for_differences()


def test_selection_per_micro_batch_differs():
    report = compare({name: OURS[name] for name in ("clip_cov", "kl_cov", "ppo")}, micro_batches=True)
    assert report.row("clip_cov selection", "micro_batches").note == "0 dropped, 2 wanted"
    assert report.row("kl_cov selection", "micro_batches").note.startswith("8 penalised, 1 wanted")
    assert {row.quantity for row in report.differences()} == {"clip_cov selection", "kl_cov selection"}


def test_a_function_that_raises_is_a_row_of_its_own():
    def broken(logits):
        raise ZeroDivisionError("no\nway")

    report = compare({"entropy": broken, "log_prob": OURS["log_prob"]}, names=("fresh",))
    row = report.row("entropy", "fresh")
    assert (row.verdict, row.note) == ("raised", "ZeroDivisionError: no way")
    assert report.row("log_prob", "fresh").verdict == "equal" and not report.equal


@pytest.mark.parametrize("name", ["entropy", "covariance", "grpo", "ppo", "clip_cov", "kl_cov", "entropy_bonus"])
def test_an_answer_of_the_wrong_shape_differs(name):
    wrong = torch.zeros(2, 3)
    function = (lambda **_: (0.0, wrong)) if QUANTITIES[name].grad else (lambda **_: wrong)
    rows = compare({name: function}, names=("fresh",)).differences()
    assert any("shape (2, 3)" in row.note for row in rows)


def test_a_loss_that_ignores_its_input_has_gradient_zero():
    report = compare({"ppo": lambda **a: a["advantage"].sum().requires_grad_()}, names=("fresh",))
    assert report.row("ppo gradient", "fresh").verdict == "differs"


# --- calling it -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"functions": {"entropi": len}}, "no quantity 'entropi'; compare knows entropy, log_prob"),
        ({"functions": {}, "dtype": "float16"}, "dtype must be one of float64, float32, bfloat16, got 'float16'"),
        ({"functions": {}, "tensors": "jax"}, "tensors must be 'torch' or 'numpy', got 'jax'"),
        ({"functions": {}, "tensors": "numpy", "dtype": "bfloat16"}, "NumPy has no bfloat16"),
        ({"functions": {}, "names": ("nothing",)}, "no golden batch 'nothing'"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, words):
    with pytest.raises(ValueError, match=words):
        compare(**arguments)


def test_a_torch_dtype_may_be_given():
    assert compare({"entropy": OURS["entropy"]}, torch.float32).dtype == "float32"


def test_numpy_functions_give_their_own_gradients():
    def ppo(logp, old_logp, advantage, mask, tokens, clip_low, clip_high):
        assert isinstance(logp, np.ndarray) and logp.dtype == np.float32
        ratio = np.exp(np.where(mask, logp - old_logp, 0))
        a = np.where(mask, advantage, 0)
        clipped = np.clip(ratio, 1 - clip_low, 1 + clip_high)
        gradient = np.where(ratio * a <= clipped * a, -ratio * a, 0) / tokens
        return -np.minimum(ratio * a, clipped * a).sum() / tokens, gradient

    compare({"ppo": ppo}, "float32", tensors="numpy").raise_for_differences()
    without = compare({"ppo": lambda **_: 0.0}, "float32", names=("fresh",), tensors="numpy")
    assert "must return (loss, gradient)" in without.rows[0].note


def test_the_report_as_text_and_as_json():
    report = compare({"entropy": _naive_entropy, "log_prob": OURS["log_prob"]})
    text = str(report)
    assert "entropy" in text and "8/9" in text and "masked_logits" in text
    assert len(report.table().splitlines()) == 1 + 2 * len(BATCHES)
    document = json.loads(report.to_json())
    assert document["equal"] is False and document["dtype"] == "float64"
    assert math.isnan(float(next(r for r in document["rows"] if r["verdict"] == "differs")["difference"]))
    with pytest.raises(KeyError, match="no row 'entropy' on 'nothing'"):
        report.row("entropy", "nothing")


# --- the bounds hold, for any formula, on any numbers -----------------------------------------------------------------


def by_log(logits):
    logp = torch.log_softmax(logits, -1).masked_fill(torch.isinf(logits), 0.0)
    return -(torch.exp(torch.log_softmax(logits, -1)) * logp).sum(-1)


def by_total(logits):
    return torch.logsumexp(logits, -1) - (torch.softmax(logits, -1) * logits.masked_fill(torch.isinf(logits), 0.0)).sum(
        -1
    )


def by_entr(logits):
    return torch.special.entr(torch.softmax(logits, -1)).sum(-1)


@pytest.mark.parametrize("form", [by_log, by_total, by_entr])
@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_entropies_are_within_their_bound(form, dtype, data):
    z = data.draw(strategies.logits(max_actions=200, dtype=TORCH[dtype]))
    policy = exact.Policy(z.double().tolist())
    found = exact.number(form(z).double().item())
    allowed = rounding.entropy_error(z.double().numpy()[None], precision_of(dtype))[0]
    assert abs(found - policy.h) <= allowed


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_log_probabilities_are_within_their_bound(dtype, data):
    z = data.draw(strategies.logits(max_actions=200, dtype=TORCH[dtype]))
    policy = exact.Policy(z.double().tolist())
    logits = z.double().numpy()[None]
    for found in (torch.log_softmax(z, -1), z - torch.logsumexp(z, -1)):
        for place, lp in zip(policy.support, policy.logp, strict=True):
            allowed = rounding.log_prob_error(logits, np.array([place]), precision_of(dtype))[0]
            assert abs(exact.number(found[place].item()) - lp) <= allowed


@pytest.mark.parametrize("form", [by_log, by_total])
@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_entropy_gradients_are_within_their_bound(form, dtype, data):
    z = data.draw(strategies.logits(max_actions=50, dtype=TORCH[dtype], finite=True)).requires_grad_()
    (gradient,) = torch.autograd.grad(form(z), z)
    policy = exact.Policy(z.detach().double().tolist())
    allowed = rounding.entropy_gradient_error(z.detach().double().numpy()[None], precision_of(dtype))[0]
    for a, (p, c) in enumerate(zip(policy.pi, policy.c, strict=True)):
        assert abs(exact.number(gradient[a].item()) + p * c) <= allowed[a]


def numbers(count: int, scale: float = 10.0):
    return st.lists(st.floats(-scale, scale, width=32), min_size=count, max_size=count)


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_scores_and_their_mean_are_within_their_bounds(dtype, data):
    """The inputs are float64; the computation rounds them to its dtype first."""
    n = data.draw(st.integers(1, 30))
    x, y = data.draw(numbers(n)), data.draw(numbers(n))
    mean_x, mean_y = sum(map(Fraction, x)) / n, sum(map(Fraction, y)) / n
    scores = [(Fraction(a) - mean_x) * (Fraction(b) - mean_y) for a, b in zip(x, y, strict=True)]
    tx, ty = (torch.tensor(v, dtype=torch.float64).to(TORCH[dtype]) for v in (x, y))
    found = (tx - tx.mean()) * (ty - ty.mean())
    p = precision_of(dtype)
    allowed = rounding.score_error(np.array(x), np.array(y), p)
    tiny = 4 * n * p.tiny * 40  # products that underflow
    for value, score, bound in zip(found.double().tolist(), scores, allowed, strict=True):
        assert abs(Fraction(value) - score) <= Fraction(float(bound) + tiny)
    mean = Fraction(found.mean().double().item())
    assert abs(mean - sum(scores) / n) <= Fraction(rounding.covariance_error(np.array(x), np.array(y), p) + tiny)


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_clipped_losses_and_their_gradients_are_within_their_bounds(dtype, data):
    n = data.draw(st.integers(1, 20))
    old = [-abs(v) for v in data.draw(numbers(n))]
    logp = [o + d for o, d in zip(old, data.draw(numbers(n, 1.5)), strict=True)]
    a, p = data.draw(numbers(n, 3.0)), precision_of(dtype)
    tokens = rounding.Tokens(np.array(logp), np.array(old), np.array(a))
    exact_loss, exact_gradient = [], []
    for new, before, adv in zip(logp, old, a, strict=True):
        ratio = mpmath.exp(exact.number(new) - exact.number(before))
        value, slope = make_golden.surrogate(ratio, exact.number(adv), 0.2, 0.28)
        exact_loss.append(value)
        exact_gradient.append(slope)
    new, before, adv = (torch.tensor(v, dtype=torch.float64).to(TORCH[dtype]) for v in (logp, old, a))
    new.requires_grad_()
    ratio = torch.exp(new - before)
    loss = -torch.minimum(ratio * adv, ratio.clamp(1 - 0.2, 1 + 0.28) * adv).sum() / n
    (gradient,) = torch.autograd.grad(loss, new)
    of_x = rounding.log_ratio_error(tokens, p)
    edge = rounding.near_edge(tokens, of_x, p, 0.2, 0.28)
    values = np.array([float(v) for v in exact_loss])
    bound = rounding.mean_error(values, rounding.surrogate_error(tokens, of_x, p, 1.28), n, p)
    tiny = 40 * n * p.tiny
    assert abs(exact.number(loss.item()) - mpmath.fsum(exact_loss) / n) <= bound + tiny
    of_gradient = rounding.surrogate_gradient_error(tokens, of_x, p)
    full = np.exp(tokens.log_ratio) * np.abs(tokens.advantage)
    for i, value in enumerate(gradient.double().tolist()):
        allowed = of_gradient[i] * (exact_gradient[i] != 0) + (full[i] + of_gradient[i]) * edge[i]
        assert abs(exact.number(value) * n - exact_gradient[i]) <= (allowed + tiny) * (1 + 4 * p.u) + 4 * p.u * allowed


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_group_advantages_are_within_their_bound(dtype, data):
    n = data.draw(st.integers(1, 12))
    reward = data.draw(numbers(n, 2.0))
    group = data.draw(st.lists(st.integers(0, n - 1), min_size=n, max_size=n))
    wanted = make_golden.grpo(reward, group)
    found = OURS["grpo"](torch.tensor(reward, dtype=torch.float64).to(TORCH[dtype]), torch.tensor(group), 1e-6)
    allowed = rounding.grpo_error(np.array(reward), np.array(group), 1e-6, precision_of(dtype))
    for value, exact_value, bound in zip(found.double().tolist(), wanted, allowed, strict=True):
        assert abs(exact.number(value) - exact_value) <= bound
