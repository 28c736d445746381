"""The sweep of Lemma 1: what it finds is what a plain loop finds, and a kill changes nothing."""

import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from exact import LAST_DIGITS, Policy, number

from entropy_theory import remainder
from entropy_theory.claims import sweep_instances
from entropy_theory.lemma_1_batch import check_lemma_1

module = importlib.import_module("entropy_theory.claims.sweep")
SMALL = 240
"""Instances in a chunk here."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", SMALL)


def all_at_once(instances, actions=10, seed=0):
    """Logits and changes of a whole sweep, and how each was judged."""
    chunks = [sweep_instances.draw(seed, c, SMALL, actions) for c in range(-(-instances // SMALL))]
    z, d = (torch.from_numpy(np.concatenate(part)[:instances]) for part in zip(*chunks, strict=True))
    return z, d, check_lemma_1(z, d)


# --- what it finds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("instances", "actions", "seed"), [(1000, 10, 0), (240, 2, 5), (241, 3, 1), (1, 10, 0)])
def test_finds_what_a_plain_loop_finds(instances, actions, seed):
    found = module.sweep(instances, actions, seed)
    z, d, checked = all_at_once(instances, actions, seed)
    assert (found.instances, found.actions, found.seed) == (instances, actions, seed)
    for form, ratio in (("first", checked.first_ratio()), ("second", checked.second_ratio())):
        worst = found.found.worst[form]
        assert worst.ratio == float(ratio.max())
        assert worst.number == int(ratio.argmax())
        assert list(worst.logits) == z[worst.number].tolist()
        assert list(worst.change) == d[worst.number].tolist()
        counts = [0] * module.BINS
        for x in ratio.tolist():
            counts[max([i for i in range(module.BINS) if x >= 2.0 ** (i - 64)], default=0)] += 1
        assert found.found.histogram[form] == counts
    assert found.holds
    assert found.found.smallest is None


def test_the_worst_instances_stand_in_sixty_digits():
    found = module.sweep(2400)
    for form, predict in (("first", Policy.first_order), ("second", Policy.second_order)):
        worst = found.found.worst[form]
        z, d = torch.tensor(worst.logits, dtype=torch.float64), torch.tensor(worst.change, dtype=torch.float64)
        checked = check_lemma_1(z, d)
        bound = checked.first_bound if form == "first" else checked.second_bound
        policy = Policy(worst.logits)
        error = abs(policy.entropy_change(worst.change) - predict(policy, worst.change))
        assert error <= number(bound) + LAST_DIGITS
        # the ratio is that error over that bound, but for the rounding of both entropies and the prediction
        spread = float(checked.spread)
        proved = remainder.remainder_bound if form == "first" else remainder.second_order_remainder_bound
        slack = 1 - float(proved(torch.tensor(spread, dtype=torch.float64), 10)) / float(bound)
        assert abs(worst.ratio - float(error) / float(bound)) <= slack


def test_violations_are_counted_and_the_smallest_is_kept(monkeypatch):
    monkeypatch.setattr(remainder, "remainder_constant", lambda actions: 0.05)
    found = module.sweep(1000)
    z, d, checked = all_at_once(1000)
    violated = [i for i, r in enumerate(checked.first_ratio().tolist()) if r > 1]
    assert len(violated) > 10
    assert not found.holds
    assert found.found.violations == len(violated)

    def size(i):
        kept = d[i][torch.isfinite(z[i])]
        return len(kept), float(kept.max() - kept.min()), i

    smallest = min(violated, key=size)
    assert found.found.smallest.number == smallest
    assert list(found.found.smallest.logits) == z[smallest].tolist()
    assert found.found.smallest.ratio == float(checked.first_ratio()[smallest])


def test_histogram_bins_are_powers_of_two():
    def of(ratio):
        return module._histogram(np.array([ratio])).index(1)

    assert [of(x) for x in (0.0, 5e-324, 2.0**-64, 2.0**-63, 0.25, 0.49, 0.5, 0.99, 1.0, 1.5, 1e300)] == [
        *(0, 0, 0, 1),
        *(62, 62, 63, 63),
        *(64, 64, 64),
    ]


# --- instances ----------------------------------------------------------------------------------------------------


def test_a_chunk_is_a_function_of_seed_and_number():
    one = sweep_instances.draw(3, 7, SMALL, 10)
    for x, y in zip(one, sweep_instances.draw(3, 7, SMALL, 10), strict=True):
        assert np.array_equal(x, y)
    for other in ((3, 8), (4, 7)):
        assert not np.array_equal(one[1], sweep_instances.draw(*other, SMALL, 10)[1])


@pytest.mark.parametrize("actions", [2, 10, 33])
def test_instances_are_policies_and_changes_of_every_kind(actions):
    z, d = sweep_instances.draw(0, 0, 7200, actions)
    assert not np.isnan(z).any()
    assert (z.max(1) > -np.inf).all()
    assert z.max() < 100
    largest = np.abs(d).max(1)
    moved = largest[largest > 0]
    assert 1e-6 * (1 - 1e-12) <= moved.min() < 1e-5
    assert 5 < moved.max() <= 10 * (1 + 1e-12)
    kept = (z > -np.inf).sum(1)
    assert kept.min() == 1  # one-hot
    assert (kept == actions).mean() > 0.8
    assert ((z == -np.inf).any(1) & (kept > 1)).any() or actions == 2
    probability = np.exp(z - z.max(1, keepdims=True))
    probability /= probability.sum(1, keepdims=True)
    assert np.isclose(probability, 1 / actions).all(1).mean() > 1 / 20  # the uniform policy
    assert (probability.max(1) > 1 - 1e-12).mean() > 1 / 20
    two_valued = [len(set(row)) == 2 for row in d.tolist()]
    assert np.mean(two_valued) > 1 / 4
    spread = d.max(1) - d.min(1)
    assert ((spread < 0.02 * largest) & (spread > 0)).any()  # mostly offset


# --- stopping and going on ----------------------------------------------------------------------------------------


def test_progress_only_grows_and_ends_at_the_number_of_instances():
    seen = []
    module.sweep(1000, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(240, 1000), (480, 1000), (720, 1000), (960, 1000), (1000, 1000)]


KILLED = """
import importlib, sys
module = importlib.import_module("entropy_theory.claims.sweep")
module.CHUNK = {chunk}
module.sweep({instances}, seed=2, folder=sys.argv[1], engine="numpy", save_seconds=0)
"""


def chunks_done(state: Path) -> int:
    return json.loads(state.read_text())["chunks"] if state.exists() else 0


def test_a_killed_sweep_goes_on_and_ends_as_if_it_had_not_been_killed(tmp_path):
    instances, folder = 700 * SMALL, tmp_path / "sweep"
    code = KILLED.format(chunk=SMALL, instances=instances)
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)])
    try:
        deadline = time.monotonic() + 60
        while chunks_done(folder / "sweep.json") < 20:
            assert process.poll() is None, "the sweep ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = chunks_done(folder / "sweep.json")
    assert 20 <= before < 700
    seen = []
    resumed = module.sweep(instances, seed=2, folder=folder, engine="numpy", progress=lambda *x: seen.append(x))
    assert seen[0] == ((before + 1) * SMALL, instances)
    assert resumed == module.sweep(instances, seed=2, engine="numpy")


def test_an_interrupted_sweep_keeps_the_chunk_it_finished(tmp_path):
    def stop(done, total):
        if done == 2 * SMALL:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        module.sweep(1000, folder=tmp_path / "sweep", progress=stop, save_seconds=3600)
    assert chunks_done(tmp_path / "sweep" / "sweep.json") == 2
    assert module.sweep(1000, folder=tmp_path / "sweep") == module.sweep(1000)


def test_the_state_comes_back_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(remainder, "remainder_constant", lambda actions: 0.01)  # so that there is a violation to keep
    found = module.sweep(4000, folder=tmp_path / "sweep")
    assert found.found.smallest is not None
    assert module._read(tmp_path / "sweep" / "sweep.json") == found.found
    seen = []
    assert module.sweep(4000, folder=tmp_path / "sweep", progress=lambda *x: seen.append(x)) == found
    assert seen == []
    one_hot = module.Instance(0, 0.0, (0.0, -math.inf), (-0.0, 1e-17))
    path = tmp_path / "state.json"
    module._write(path, module.Tally(worst={"first": one_hot, "second": one_hot}))
    assert repr(module._read(path).worst["first"]) == repr(one_hot)


def test_a_folder_of_something_else_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "sweep"
    module.sweep(300, folder=folder)
    with pytest.raises(ValueError, match="seed is 0 there and 1 here"):
        module.sweep(300, seed=1, folder=folder)
    with pytest.raises(ValueError, match="instances is 300 there and 301 here"):
        module.sweep(301, folder=folder)
    monkeypatch.setattr(remainder, "remainder_constant", lambda actions: 0.5)
    with pytest.raises(ValueError, match="bounds is"):
        module.sweep(300, folder=folder)
    monkeypatch.undo()
    monkeypatch.setattr(module, "CHUNK", SMALL)
    (folder / "sweep.json").write_text('{"chunks": 1}')
    with pytest.raises(ValueError, match=r"sweep\.json is damaged; delete the folder and start the sweep again"):
        module.sweep(300, folder=folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"instances": 0}, "instances must be at least 1, got 0"),
        ({"instances": 5, "actions": 1}, "actions must be at least 2, got 1"),
        ({"instances": 5, "seed": -1}, "seed must be at least 0, got -1"),
        ({"instances": 5, "engine": "gpu"}, "engine must be one of numba, numpy, got 'gpu'"),
    ],
)
def test_bad_settings_are_one_sentence(settings, message):
    with pytest.raises(ValueError, match=message):
        module.sweep(**settings)
