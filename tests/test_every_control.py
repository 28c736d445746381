"""The contract every control keeps, over every entry of `CONTROLS`; the table is in `contract.py`."""

import itertools
from dataclasses import replace
from functools import partial

import oracles
import pytest
import strategies
import torch
from contract import CONTRACT
from hypothesis import assume, given
from hypothesis import strategies as st

from entropy_theory.control import Need, chain
from entropy_theory.controls import CONTROLS
from entropy_theory.loss import minibatch_loss, token_loss
from entropy_theory.records import Batch, Measurement, Objective, Sampling, map_tensors
from entropy_theory.reduce import token_count
from entropy_theory.runs import Run
from entropy_theory.softmax import token_statistics

NAMES = sorted(CONTRACT)
CHAINS = {f"{a}+{b}": (a, b) for a, b in itertools.permutations(NAMES, 2) if "none" not in (a, b)}
LARGE = 10  # rows of the fixed batches: enough for every fraction in the table to select some and spare some
DEVICES = ["meta", *(["cuda"] if torch.cuda.is_available() else [])]


def build(name, parameters=None):
    """A control of the table, or a chain "a+b", with its acting parameters unless others are given."""
    parts = [CONTROLS[n](**(CONTRACT[n].acting if parameters is None else parameters)) for n in name.split("+")]
    return parts[0] if len(parts) == 1 else chain(*parts)


def drawn(name):
    """Whether the control holds random draws."""
    return any(CONTRACT[n].drawn for n in name.split("+"))


def leading_of(batch):
    return batch.advantage.shape[:-2]


def start(control, batch, steps=0):
    """State after `steps` optimizer steps, for the batch's replicas."""
    like = torch.zeros(leading_of(batch), dtype=batch.advantage.dtype, device=batch.advantage.device)
    state = control.init(like)
    for step in range(steps):
        state = control.advance(state, Measurement(like + 0.1 * (step + 1)))
    return state


def edited(control, batch, steps=0, objective=None):
    """The control's objective for a batch, from the plain objective."""
    return control.edit(objective or Objective.from_batch(batch), batch, start(control, batch, steps))


def leaves(value):
    """All tensors in nested tuples or a record, in order."""
    found = []
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, tuple | list):
        for v in value:
            found += leaves(v)
        return found
    map_tensors(value, lambda t: found.append(t) or t)
    return found


def map_state(state, function):
    """The state with `function` applied to each tensor."""
    if isinstance(state, tuple):
        return tuple(map_state(s, function) for s in state)
    return function(state)


def bits(tensor):
    """The tensor's bytes: NaN equals NaN, 0 differs from -0."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8) if tensor.numel() else tensor


def identical(one, two):
    """Whether two records or states hold the same bits in the same dtypes and shapes."""
    pairs = list(zip(leaves(one), leaves(two), strict=True))
    return all(a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b)) for a, b in pairs)


def gradients(batch, objective):
    """(loss, its gradients with respect to log-probability and entropy) of every token."""
    logp, entropy = batch.logp.clone().requires_grad_(), batch.entropy.clone().requires_grad_()
    loss = token_loss(logp, entropy, batch, objective)
    return (loss.detach(), *torch.autograd.grad(loss.sum(), (logp, entropy)))


def same_effect(batch, one, two):
    """Whether two objectives give every token the same gradient, bit for bit."""
    pairs = zip(gradients(batch, one)[1:], gradients(batch, two)[1:], strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def tie_free(batch):
    """Whether no two valid tokens of a replica have (nearly) the same score, so that a ranking is well defined."""
    stacks = (t.reshape(-1, *t.shape[-2:]).tolist() for t in (batch.logp, batch.advantage, batch.mask))
    for logp, advantage, mask in zip(*stacks, strict=True):
        scores = oracles.published_scores(logp, advantage, mask)
        valid = sorted(s for s, m in zip(scores, oracles.flat(mask), strict=True) if m)
        # 1e-9: a million times the rounding of scores of size 10
        if any(b - a < 1e-9 for a, b in itertools.pairwise(valid)):
            return False
    return True


def fixed_batch(fresh):
    """A batch with tokens on every side: likely and rare, praised and blamed, ratios inside and outside the clip."""
    rng = torch.Generator().manual_seed(7)
    shape = (LARGE, 4)
    normal = partial(torch.randn, generator=rng, dtype=torch.float64)
    old = -normal(shape).abs() - 0.1
    ratio = torch.tensor([0.6, 0.9, 1.1, 1.35], dtype=torch.float64).expand(shape)
    new = old if fresh else old + ratio.log()
    return Batch(
        logp=new,
        old_logp=old,
        advantage=normal(shape),
        mask=torch.arange(4) < torch.tensor([4, 3] * (LARGE // 2))[:, None],
        entropy=normal(shape).abs(),
        outcome=torch.tensor([0.0, 1.0] * (LARGE // 2), dtype=torch.float64),
        group=torch.arange(LARGE) // 5,
        ref_logp=new + 0.1 * normal(shape),
        proxy_logp=new + 0.1 * normal(shape),
    )


def test_every_control_has_a_row():
    missing = sorted(set(CONTROLS) - set(CONTRACT))
    assert not missing, f"add a row to CONTRACT in tests/contract.py for: {', '.join(missing)}"
    left_over = sorted(set(CONTRACT) - set(CONTROLS))
    assert not left_over, f"CONTRACT in tests/contract.py has rows for controls that do not exist: {left_over}"


# --- 1: pure ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, *CHAINS])
@given(data=st.data())
def test_pure(name, data):
    """Nothing is written to, nothing global is read: the same arguments give the same bits."""
    batch = data.draw(strategies.batches(dtype=None))
    objective = data.draw(strategies.objectives(batch))
    control = build(name)
    state = start(control, batch, data.draw(st.integers(0, 3)))
    measurement = Measurement(torch.full(leading_of(batch), 0.2, dtype=batch.logp.dtype))
    sampling = Sampling(torch.ones(leading_of(batch), dtype=batch.logp.dtype))
    inputs = [objective, batch, state, measurement, sampling]
    before = [(t, t.clone(), t._version) for t in itertools.chain.from_iterable(map(leaves, inputs))]
    torch.manual_seed(0)
    generator = torch.get_rng_state()

    def act():
        return [
            control.edit(objective, batch, state),
            control.advance(state, measurement),
            control.sample(sampling, state),
            (control.activate(batch.logp),),
        ]

    first = act()
    torch.manual_seed(1)  # a second call must not depend on the global generator either
    second = act()
    assert all(identical(a, b) for a, b in zip(first, second, strict=True))
    torch.manual_seed(0)
    act()
    assert torch.equal(torch.get_rng_state(), generator)
    for tensor, copy, version in before:
        assert tensor._version == version and torch.equal(bits(tensor), bits(copy))


@pytest.mark.parametrize("name", NAMES)
def test_records_carry_no_gradient(name):
    """Selection and coefficients are constants of the update."""
    batch = fixed_batch(fresh=False)
    assert not any(t.requires_grad for t in leaves(edited(build(name), batch)))


# --- 2: a stack of replicas ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, *CHAINS])
@given(data=st.data())
def test_edit_of_a_stack_is_the_stack_of_edits(name, data):
    leading = data.draw(st.sampled_from([(2,), (3,), (2, 2)]))
    batch = data.draw(strategies.batches(leading=leading))
    assume(tie_free(batch))
    control = build(name)
    state = start(control, batch, data.draw(st.integers(0, 3)))
    together = control.edit(Objective.from_batch(batch), batch, state)
    for index in itertools.product(*map(range, leading)):
        pick = lambda t, index=index: t[index]  # noqa: E731
        one = map_tensors(batch, pick)
        alone = control.edit(Objective.from_batch(one), one, map_state(state, pick))
        assert identical(map_tensors(together, pick), alone)


@pytest.mark.parametrize("name", NAMES)
def test_replicas_advance_by_their_own_measurement(name):
    control = build(name)
    like = torch.zeros(2, dtype=torch.float64)
    state = control.advance(control.init(like), Measurement(torch.tensor([0.1, 3.0], dtype=torch.float64)))
    for replica in range(2):
        entropy = torch.tensor([[0.1, 3.0][replica]], dtype=torch.float64)
        part = map_state(control.init(like), lambda t, r=replica: t[r : r + 1])
        expected = control.advance(part, Measurement(entropy))
        assert identical(map_state(state, lambda t, r=replica: t[r : r + 1]), expected)


# --- 3: blind to masked values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, *CHAINS])
@given(data=st.data())
def test_blind_to_masked_values(name, data):
    batch = data.draw(strategies.batches(garbage=False, dtype=None))
    rng = data.draw(strategies.generators())

    def spoil(t):
        if t.shape != batch.mask.shape or not t.is_floating_point():
            return t
        return torch.where(batch.mask, t, torch.from_numpy(rng.choice(strategies.GARBAGE, tuple(t.shape))).to(t.dtype))

    spoiled = map_tensors(batch, spoil)
    control = build(name)
    clean, dirty = edited(control, batch), edited(control, spoiled)
    assert torch.equal(clean.mask, dirty.mask)
    keep = lambda t: t[batch.mask]  # noqa: E731
    assert identical(map_tensors(clean, keep), map_tensors(dirty, keep))
    for one, two in zip(gradients(batch, clean), gradients(spoiled, dirty), strict=True):
        assert torch.equal(one, two)


# --- 4: dtype and device ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, *CHAINS])
@given(data=st.data())
def test_keeps_dtype_and_shape(name, data):
    batch = data.draw(strategies.batches(dtype=None))
    objective = edited(build(name), batch, data.draw(st.integers(0, 2)))
    for tensor in leaves(objective):
        assert tensor.shape == batch.mask.shape
        assert tensor.dtype == (torch.bool if tensor is objective.mask else batch.logp.dtype)


@pytest.mark.parametrize("name", [*NAMES, *CHAINS])
@pytest.mark.parametrize("device", DEVICES)
def test_stays_on_its_device(name, device):
    """On "meta" tensors any branch on a value and any tensor made on the CPU raises."""
    batch = map_tensors(fixed_batch(fresh=False), lambda t: t.to(device))
    control = build(name)
    result = edited(control, batch, steps=2)
    assert all(t.device.type == device for t in leaves(result))
    if device == "cuda":
        home = edited(control, fixed_batch(fresh=False), steps=2)
        assert identical(map_tensors(result, lambda t: t.cpu()), home)


# --- 5: gradients independent of micro-batches, order and padding -------------------------------------------------


class Toy:
    """A linear softmax policy on fixed features: parameters move every row's logits, as a network's do."""

    FEATURES, ACTIONS = 3, 4

    def __init__(self, rng, rows, steps, stale):
        def normal(*shape):
            return torch.from_numpy(rng.normal(size=shape))

        self.features = normal(rows, steps, self.FEATURES)
        self.action = torch.from_numpy(rng.integers(0, self.ACTIONS, (rows, steps)))
        self.advantage = normal(rows, steps)
        self.mask = torch.from_numpy(rng.random((rows, steps)) < 0.8)
        self.parameters = normal(self.FEATURES, self.ACTIONS)
        self.old_parameters = self.parameters + stale * 0.3 * normal(self.FEATURES, self.ACTIONS)
        self.group = torch.arange(rows) // 2
        self.outcome = torch.from_numpy(rng.choice([0.0, 1.0], rows))

    def reordered(self, order):
        """The same rows in another order."""
        other = object.__new__(Toy)
        row_fields = ("features", "action", "advantage", "mask", "group", "outcome")
        other.__dict__ = {k: v[order] if k in row_fields else v for k, v in self.__dict__.items()}
        return other

    def padded(self, rows, steps):
        """The same tokens in a larger tensor, with garbage in the padding."""
        other = object.__new__(Toy)
        other.__dict__ = dict(self.__dict__)
        old_rows, old_steps = self.mask.shape

        def pad(t, value):
            shape = (old_rows + rows, old_steps + steps, *t.shape[2:]) if t.ndim > 1 else (old_rows + rows,)
            wide = torch.full(shape, value, dtype=t.dtype)
            wide[(slice(old_rows), slice(old_steps))[: t.ndim]] = t
            return wide

        for field, value in (("features", 1.0), ("advantage", 1e9), ("action", 0), ("mask", False)):
            setattr(other, field, pad(getattr(self, field), value))
        other.group, other.outcome = pad(self.group, 0), pad(self.outcome, 0.0)
        return other

    def statistics(self, parameters, rows=slice(None), scale=1.0):
        """(logp, entropy) of the sampled actions. A product and a sum, not a matmul: bit-equal for any split."""
        logits = (self.features[rows].unsqueeze(-1) * parameters).sum(-2)
        return token_statistics(logits * scale, self.action[rows])

    def batch(self):
        logp, entropy = self.statistics(self.parameters)
        old_logp, _ = self.statistics(self.old_parameters)
        reference = logp - 0.1
        return Batch(
            logp, old_logp, self.advantage, self.mask, entropy, self.outcome, self.group, reference, reference - 0.1
        )

    def gradient(self, control, state, splits):
        """Parameter gradient accumulated over micro-batches of rows, and the summed size of its parts."""
        batch = self.batch()
        objective = control.edit(Objective.from_batch(batch), batch, state)
        count = token_count(objective.mask)
        total, size = torch.zeros_like(self.parameters), 0.0
        for rows in splits:
            parameters = self.parameters.clone().requires_grad_()
            scale = objective.logit_scale[rows].unsqueeze(-1)
            logp, entropy = self.statistics(parameters, rows, scale)
            pick = lambda t, rows=rows: t[rows]  # noqa: E731
            loss = token_loss(logp, entropy, map_tensors(batch, pick), map_tensors(objective, pick))
            (gradient,) = torch.autograd.grad(minibatch_loss(loss, count), parameters)
            total, size = total + gradient, size + float(gradient.norm())
        return total, size


@st.composite
def toys(draw):
    """(toy, fresh) with well-separated scores."""
    fresh = draw(st.booleans())
    toy = Toy(draw(strategies.generators()), draw(st.integers(2, 6)), draw(st.integers(2, 5)), stale=not fresh)
    assume(tie_free(toy.batch()))
    return toy


def one_row_each(toy):
    return [slice(i, i + 1) for i in range(toy.mask.shape[0])]


@pytest.mark.parametrize("name", [*NAMES, *CHAINS])
@given(data=st.data())
def test_gradient_is_independent_of_split_order_and_padding(name, data):
    toy = data.draw(toys())
    rows = toy.mask.shape[0]
    cut = data.draw(st.integers(1, rows - 1))
    control = build(name)
    state = start(control, toy.batch(), data.draw(st.integers(0, 3)))
    # sizes of the rows' gradients: what a relative error of a sum is relative to when its terms cancel
    whole, size = toy.gradient(control, state, [slice(None)])
    size = max(size, toy.gradient(control, state, one_row_each(toy))[1])
    order = torch.from_numpy(data.draw(strategies.generators()).permutation(rows))
    padded = toy.padded(rows=data.draw(st.integers(0, 2)), steps=data.draw(st.integers(0, 3)))
    others = {
        "one row per micro-batch": (toy, one_row_each(toy)),
        "two micro-batches": (toy, [slice(0, cut), slice(cut, None)]),
        "padding": (padded, [slice(None)]),
        "padding, one row per micro-batch": (padded, one_row_each(padded)),
    }
    if not drawn(name):
        others["other row order"] = (toy.reordered(order), one_row_each(toy))
    for change, (other, splits) in others.items():
        gradient, _ = other.gradient(control, state, splits)
        assert float((gradient - whole).norm()) <= 1e-12 * size, change


# --- 6: neutral parameters ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in NAMES if CONTRACT[n].neutral is not None])
@given(data=st.data())
def test_neutral_parameters_switch_the_control_off(name, data):
    batch = data.draw(strategies.batches())
    plain = Objective.from_batch(batch)
    row = CONTRACT[name]
    control = build(name, row.neutral)
    neutral, expected = edited(control, batch, data.draw(st.integers(0, 2))), row.neutral_equals(plain, batch)
    for one, two in zip(gradients(batch, neutral), gradients(batch, expected), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(neutral.mask, plain.mask) and torch.equal(neutral.logit_scale, plain.logit_scale)


# --- 7: row order -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in [*NAMES, *CHAINS] if not drawn(n)])
@given(data=st.data())
def test_rows_in_another_order_get_the_same_edit(name, data):
    batch = data.draw(strategies.batches())
    assume(tie_free(batch))
    order = torch.from_numpy(data.draw(strategies.generators()).permutation(batch.mask.shape[-2]))

    def permute(t):
        return t[..., order, :] if t.shape == batch.mask.shape else t[..., order]

    control = build(name)
    expected = map_tensors(edited(control, batch), permute)
    assert identical(edited(control, map_tensors(batch, permute)), expected)


# --- 8: needs are honest ------------------------------------------------------------------------------------------


def without(batch, needs, poison):
    """The batch with every field that `needs` does not name taken away or filled with NaN."""
    gone = {}
    nan = torch.full_like(batch.logp, torch.nan)
    if Need.REF_LOGP not in needs:
        gone["ref_logp"] = nan if poison else None
    if Need.PROXY_LOGP not in needs:
        gone["proxy_logp"] = nan if poison else None
    if Need.WHOLE_GROUPS not in needs:
        gone["outcome"] = torch.full_like(batch.outcome, torch.nan)
        gone["group"] = torch.zeros_like(batch.group) if poison else batch.group.flip(-1)
    return replace(batch, **gone)


@pytest.mark.parametrize("name", [*NAMES, *CHAINS])
@given(data=st.data())
def test_reads_no_field_it_does_not_declare(name, data):
    batch = data.draw(strategies.batches())
    control = build(name)
    expected = edited(control, batch)
    for poison in (False, True):
        assert identical(edited(control, without(batch, control.needs, poison)), expected)


@pytest.mark.parametrize("name", [*NAMES, *CHAINS])
@given(data=st.data())
def test_edits_no_field_it_does_not_declare(name, data):
    batch = data.draw(strategies.batches())
    control = build(name)
    objective = Objective.from_batch(batch)
    result = edited(control, batch)
    if Need.ENTROPY_GRAD not in control.needs:
        assert identical((result.entropy_coef,), (objective.entropy_coef,))
    if Need.LOGIT_SCALE not in control.needs:
        assert identical((result.logit_scale,), (objective.logit_scale,))
    state = start(control, batch)
    if Need.SAMPLING not in control.needs:
        sampling = Sampling(torch.full(leading_of(batch), 1.3, dtype=batch.logp.dtype))
        assert identical(control.sample(sampling, state), sampling)
    if Need.ACTIVATION not in control.needs:
        assert identical((control.activate(batch.logp),), (batch.logp,))


@pytest.mark.parametrize("name", NAMES)
def test_declares_samples_exactly_when_tokens_are_compared(name):
    """A control that treats each token by itself may also act on an enumeration of the actions."""
    batch = fixed_batch(fresh=False)
    control = build(name)
    whole = edited(control, batch)
    state = start(control, batch)
    alone_is_same = True
    for row in range(LARGE):
        pick = lambda t, row=row: t[row : row + 1]  # noqa: E731
        one = map_tensors(batch, pick)
        alone = control.edit(Objective.from_batch(one), one, state)
        alone_is_same &= identical(map_tensors(whole, pick), alone)
    compares = Need.SAMPLES in control.needs or Need.WHOLE_GROUPS in control.needs
    assert compares != alone_is_same


# --- 9: resume ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, *CHAINS])
def test_state_resumes_from_disk_bit_for_bit(name, tmp_path):
    control = build(name)
    like = torch.zeros(2, dtype=torch.float64)
    batch = map_tensors(fixed_batch(fresh=False), lambda t: torch.stack([t, t.flip(0)]))
    measured = [Measurement(torch.tensor([0.1 * k, 0.3], dtype=torch.float64)) for k in range(6)]

    def train(folder, steps):
        """Continue the run in `folder` up to `steps` steps; the last state and the objectives seen."""
        objectives = []
        with Run(folder, {"control": name}) as run:
            stored = run.load_state()
            state, begin = (stored["control"], stored["step"]) if stored else (control.init(like), 0)
            for step in range(begin, steps):
                objectives.append(control.edit(Objective.from_batch(batch), batch, state))
                state = control.advance(state, measured[step])
                run.record({"step": step}, {"step": step + 1, "control": state})
        return state, objectives

    through_state, through = train(tmp_path / "through", 6)
    _, first = train(tmp_path / "halved", 2)
    halved_state, rest = train(tmp_path / "halved", 6)
    assert identical(halved_state, through_state)
    assert all(identical(a, b) for a, b in zip(through, [*first, *rest], strict=True))


# --- 10: when it acts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fresh", [True, False])
def test_acts_as_the_table_says(name, fresh):
    batch = fixed_batch(fresh)
    acts = not same_effect(batch, edited(build(name), batch), Objective.from_batch(batch))
    assert acts == (CONTRACT[name].acts_on_fresh if fresh else CONTRACT[name].acts_on_stale)


@pytest.mark.parametrize("name", [n for n in NAMES if not CONTRACT[n].acts_on_fresh])
@given(data=st.data())
def test_controls_that_wait_leave_every_fresh_batch_alone(name, data):
    batch = data.draw(strategies.batches(fresh=True))
    parameters = data.draw(st.sampled_from([{}, CONTRACT[name].acting]))
    assert same_effect(batch, edited(build(name, parameters), batch), Objective.from_batch(batch))


@given(strategies.controls(), st.data())
def test_every_setting_keeps_the_loss_finite(drawn_control, data):
    """Whatever the batch: empty, fresh, stale, garbage in the padding, another control's objective before it."""
    name, parameters = drawn_control
    batch = data.draw(strategies.batches())
    objective = data.draw(strategies.objectives(batch))
    result = edited(build(name, parameters), batch, data.draw(st.integers(0, 2)), objective)
    assert all(torch.isfinite(t).all() for t in gradients(batch, result))
