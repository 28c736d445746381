"""Whole runs on the engine compiled by Numba, and how it is chosen."""

import dataclasses
import multiprocessing
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from cartpole_runs import SMALL, same, train, trained

from entropy_theory.compiled import announce, forget_outdated
from sims import cartpole, cartpole_blocks, cartpole_config, engine

pytest.importorskip("numba")


FAST = dataclasses.replace(SMALL, engine="numba")


# --- whole runs ------------------------------------------------------------------------------------------------------


EPISODES = {"algorithm": "grpo", "groups": 2, "group_size": 3, "episode_rollouts": 3, "probe_states": 8}
AENT = {"env": "Acrobot-v1", "control": "aent", "set": {"aent.share": 0.4, "aent.coef": 0.01}}


@pytest.mark.parametrize(
    "settings",
    [
        *({"surrogate": name} for name in cartpole_config.SURROGATES),
        *(EPISODES | {"aggregation": name} for name in cartpole_config.AGGREGATIONS),
        EPISODES | {"surrogate": "gspo", "aggregation": "seq-mean-token-mean", "advantage": "rloo"},
        AENT,
        {"init": "default", "init_gain": 20.0, "init_entropy": 0.9, "control": "kl_to_reference"},
    ],
    ids=lambda settings: "-".join(str(x) for x in settings.values() if isinstance(x, str)),
)
def test_a_run_is_the_generic_one(tmp_path, settings):
    """float64, 5 rollouts of 4 updates: the same episodes, and weights that agree.

    A gradient of size 1 is off by at most some 1e-13 (500 roundings), a step of Adam (eps 1e-5) then by at most
    lr 1e-13 / 1e-5 = 1e-11, and 20 steps of which each may amplify what came before tenfold in all by 1e-9.
    """
    runs = {}
    for name in ("torch", "numba"):
        config = dataclasses.replace(SMALL, dtype="float64", engine=name, **settings)
        lines = train(config, tmp_path / name)
        runs[name] = lines, trained(tmp_path / name)
    (lines, weights), (expected, expected_weights) = runs["numba"], runs["torch"]
    assert [line["episode_return"] for line in lines] == [line["episode_return"] for line in expected]
    for a, b in zip(weights, expected_weights, strict=True):
        assert (a - b).abs().max() <= 1e-9
    entropies = [[line["entropy"] for line in run] for run in (lines, expected)]
    np.testing.assert_allclose(*entropies, rtol=0, atol=1e-9)
    assert not same(weights, cartpole.make_learner(config).networks)


def test_nothing_depends_on_threads_or_on_other_seeds(tmp_path):
    found = {}
    for seeds, threads in ((5, 1), (5, 2), (2, 1)):
        config = dataclasses.replace(FAST, seeds=seeds, threads=threads, control="entropy_bonus")
        train(config, tmp_path / f"{seeds}-{threads}")
        found[seeds, threads] = trained(tmp_path / f"{seeds}-{threads}")
    assert same(found[5, 1], found[5, 2])
    first_two = [w[:, :2] if w.shape[0] == 2 and w.dim() == 4 else w[:2] for w in found[5, 1]]
    assert same(first_two, found[2, 1])


class Killed(Exception):
    pass


@pytest.mark.parametrize("settings", [{}, {"save_every": 3}])
def test_a_resumed_run_writes_the_same_bytes(tmp_path, monkeypatch, settings):
    """Also from a state some rollouts back, and with the seeds in blocks."""
    monkeypatch.setattr(cartpole_blocks, "LARGEST", 2)
    config, seen = dataclasses.replace(FAST, **settings), []

    def kill(done, total, line):
        seen.append(done)
        if done == 4:
            raise Killed

    train(config, tmp_path / "whole")
    with pytest.raises(Killed):
        train(config, tmp_path / "parts", kill)
    train(config, tmp_path / "parts", lambda done, total, line: seen.append(done))
    saved = 4 // config.save_every * config.save_every
    assert seen == [1, 2, 3, 4, *range(saved + 1, config.rollouts + 1)]
    for name in ("metrics.jsonl", "state.pt"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_a_dead_worker_ends_the_run_in_one_sentence_and_it_resumes(tmp_path):
    def kill(done, total, line):
        if done == 2:
            multiprocessing.active_children()[0].kill()

    config = dataclasses.replace(FAST, threads=2)
    with pytest.raises(ChildProcessError, match="a worker process of this run died; the same command goes on"):
        train(config, tmp_path / "parts", kill)
    train(config, tmp_path / "parts")
    train(FAST, tmp_path / "whole")
    assert same(trained(tmp_path / "parts"), trained(tmp_path / "whole"))
    assert not multiprocessing.active_children()


def test_a_worker_of_a_sweep_trains_all_seeds_itself(tmp_path, monkeypatch):
    """It has one core, and Python lets such a process start none of its own; the numbers are the same."""
    train(FAST, tmp_path / "whole")
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    train(dataclasses.replace(FAST, threads=2), tmp_path / "sweep")
    assert same(trained(tmp_path / "sweep"), trained(tmp_path / "whole"))


# --- choosing it -----------------------------------------------------------------------------------------------------


def test_without_numba_the_engine_is_torch_or_the_error_names_the_remedy(monkeypatch):
    present = engine.importlib.util.find_spec
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None if name == "numba" else present(name))
    assert engine.resolve_engine("auto") == "torch"
    with pytest.raises(ValueError, match=r"engine 'numba' needs .*pip install 'entropy-theory\[fast\]'"):
        engine.resolve_engine("numba")


def test_numba_is_loaded_only_when_chosen():
    code = (
        "import sys; from sims import cartpole, cartpole_config as c;"
        "cartpole.make_learner(c.CartPoleConfig(engine='torch')); print('numba' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_kept_code_older_than_the_source_is_forgotten(tmp_path):
    def kernel():
        pass

    kernel.stats = SimpleNamespace(cache_path=str(tmp_path))
    old, new = (tmp_path / f"file.kernel-{age}.nbi" for age in (1, 2))
    for index in (old, new):
        index.touch()
    os.utime(old, (1, 1))
    os.utime(new, (2**32, 2**32))
    forget_outdated((kernel,), tmp_path)
    assert not old.exists() and new.exists()


def test_that_code_is_compiled_is_said_once(tmp_path, capsys):
    def kernel():
        pass

    kernel.stats = SimpleNamespace(cache_path=str(tmp_path))
    announce((kernel,), "the engine")
    assert "compiling the engine, once on this machine" in capsys.readouterr().err
    announce((kernel,), "the engine")
    assert capsys.readouterr().err == ""
    (tmp_path / "file.kernel-1.nbi").touch()
    announce((kernel,), "another engine")
    assert capsys.readouterr().err == ""
