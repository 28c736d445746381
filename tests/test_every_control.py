"""The contract every control keeps, over every entry of `CONTROLS`; the table is in `contract.py`."""

import itertools
from dataclasses import replace

import pytest
import strategies
import torch
from contract import (
    CHAINS,
    CONTRACT,
    LARGE,
    NAMES,
    PRESETS,
    bits,
    build,
    by_micro_batch,
    drawn,
    edited,
    fixed_batch,
    gradients,
    identical,
    leading_of,
    leaves,
    map_state,
    same_effect,
    start,
    tie_free,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from toy import one_row_each, toys

from entropy_theory.control import Need
from entropy_theory.controls import CONTROLS
from entropy_theory.records import Measurement, Objective, Sampling, map_tensors
from entropy_theory.runs import Run

DEVICES = ["meta", *(["cuda"] if torch.cuda.is_available() else [])]


def test_every_control_has_a_row():
    missing = sorted(set(CONTROLS) - set(CONTRACT))
    assert not missing, f"add a row to CONTRACT in tests/contract.py for: {', '.join(missing)}"
    left_over = sorted(set(CONTRACT) - set(CONTROLS))
    assert not left_over, f"CONTRACT in tests/contract.py has rows for controls that do not exist: {left_over}"


# --- 1: pure ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, *PRESETS, *CHAINS])
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


@pytest.mark.parametrize("name", [*NAMES, *PRESETS, *CHAINS])
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


@pytest.mark.parametrize("name", [*NAMES, *PRESETS, *CHAINS])
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


@pytest.mark.parametrize("name", [*NAMES, *PRESETS, *CHAINS])
@given(data=st.data())
def test_keeps_dtype_and_shape(name, data):
    batch = data.draw(strategies.batches(dtype=None))
    objective = edited(build(name), batch, data.draw(st.integers(0, 2)))
    for tensor in leaves(objective):
        assert tensor.shape == batch.mask.shape
        assert tensor.dtype == (torch.bool if tensor is objective.mask else batch.logp.dtype)


@pytest.mark.parametrize("name", [n for n in (*NAMES, *PRESETS, *CHAINS) if not by_micro_batch(n)])
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


@pytest.mark.parametrize("name", [*NAMES, *PRESETS, *CHAINS])
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


@pytest.mark.parametrize("name", [n for n in [*NAMES, *PRESETS, *CHAINS] if not drawn(n)])
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
    if Need.COLLISION not in needs:
        gone["collision"] = nan if poison else None
    if Need.WHOLE_GROUPS not in needs:
        gone["outcome"] = torch.full_like(batch.outcome, torch.nan)
        gone["group"] = torch.zeros_like(batch.group) if poison else batch.group.flip(-1)
    return replace(batch, **gone)


@pytest.mark.parametrize("name", [*NAMES, *PRESETS, *CHAINS])
@given(data=st.data())
def test_reads_no_field_it_does_not_declare(name, data):
    batch = data.draw(strategies.batches())
    control = build(name)
    expected = edited(control, batch)
    for poison in (False, True):
        assert identical(edited(control, without(batch, control.needs, poison)), expected)


@pytest.mark.parametrize("name", [*NAMES, *PRESETS, *CHAINS])
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
    if Need.PROXY_LOGP not in control.needs:
        assert identical((control.proxy(batch.logp),), (batch.logp,))
    if Need.ENTROPY_SUPPORT not in control.needs:
        assert identical((control.entropy_support(batch.logp),), (batch.logp,))


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
        one = replace(one, group=torch.zeros_like(one.group))  # ids lie in [0, rows)
        alone = control.edit(Objective.from_batch(one), one, state)
        alone_is_same &= identical(map_tensors(whole, pick), alone)
    compares = Need.SAMPLES in control.needs or Need.WHOLE_GROUPS in control.needs
    assert compares != alone_is_same


# --- 9: resume ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, *PRESETS, *CHAINS])
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
    found = edited(build(name), batch, CONTRACT[name].steps)
    acts = not same_effect(batch, found, Objective.from_batch(batch))
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
