"""Grids, which give every control the same number of candidates, and suites, which put controls side by side."""

import json
import math
import tomllib
from pathlib import Path

import numpy as np
import pytest
from test_ablate import table
from test_sweeps import parse

from entropy_theory import cli, sweeps
from entropy_theory.cli import sweep_files
from entropy_theory.cli.comparison import COLLAPSE, EXPLOSION
from entropy_theory.runs import read_metrics

SWEEP = """
description = "{name}"
world = "bandit"
seeds = 4
[base]
problems = 1
arms = 3
rollouts = {rollouts}
[axes]
control = ["none", "kl_cov", "entropy_bonus"]
[tune]
seeds = 2
metric = "return"
[tune.grid]
kl_cov = [{{ fraction = 0.5, coef = 3.0 }}, {{ preset = "verl" }}]
entropy_bonus = [{{ coef = 50.0 }}, {{ step_size = 0.5, coef = 0.001 }}]
"""
GRID = '[tune.grid]\nkl_cov = [{ fraction = 0.1 }, { preset = "verl" }]\n'


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Folder of a suite of two small sweeps that has run."""
    folder = tmp_path_factory.mktemp("suite")
    for name, rollouts in (("one", 12), ("two", 20)):
        (folder / f"{name}.toml").write_text(SWEEP.format(name=name, rollouts=rollouts))
    files = json.dumps([str(folder / "one.toml"), str(folder / "two.toml")])
    (folder / "both.toml").write_text(f'description = "both"\nsweeps = {files}\n')
    assert cli.main(["ablate", str(folder / "both.toml"), "--workers", "2", "--out", str(folder / "out")]) == 0
    return folder


def final(values):
    """Mean over the last tenth of the steps."""
    return np.mean(values[-max(1, round(len(values) / 10)) :])


def by_seed(folder: Path, metric: str) -> np.ndarray:
    return np.array([line[metric] for line in read_metrics(folder)]).T


def test_the_best_candidate_on_the_tuning_seeds_goes_into_the_report(compared):
    out = compared / "out/one"
    runs = tomllib.loads((out / "grid.toml").read_text())["runs"]
    assert list(runs) == ["001-kl_cov", "002-entropy_bonus"]
    for folder, found in runs.items():
        values = []
        for i, candidate in enumerate(found["tried"]):
            trial = out / f"tune/candidate-{i}" / folder
            config = json.loads((trial / "config.json").read_text())
            assert (config["seeds"], config["seed"]) == (2, 0)
            values.append(np.mean([final(row) for row in by_seed(trial, "reward")]))
            assert candidate["value"] == pytest.approx(values[-1], rel=1e-12)
        best = dict(found["tried"][int(np.argmax(values))])
        del best["value"]
        assert found["best"] == best
        config = json.loads((out / folder / "config.json").read_text())
        assert (config["seeds"], config["seed"]) == (4, 100)
        for key, value in best.items():
            assert (config["set"] if "." in key else config)[key] == value


def test_the_comparison_is_that_of_the_runs(compared):
    rows = table(compared / "out/data/comparison.csv")
    assert [(row["sweep"], row["control"]) for row in rows] == [
        (name, control) for name in ("one", "two") for control in ("none", "kl_cov", "entropy_bonus")
    ]
    for row in rows:
        (folder,) = [p for p in (compared / "out" / row["sweep"]).iterdir() if p.name.endswith("-" + row["control"])]
        entropy, reward = by_seed(folder, "entropy"), by_seed(folder, "reward")
        # of four seeds the smallest and the largest are left out
        middle = np.mean(sorted(map(final, reward))[1:3])
        assert float(row["final_return"]) == pytest.approx(middle, rel=1e-5)
        assert float(row["final_return_low"]) <= middle <= float(row["final_return_high"])
        share = np.array([final(values) / values[0] for values in entropy])
        assert float(row["collapsed"]) == np.mean(share < COLLAPSE)
        assert float(row["exploded"]) == np.mean(share > EXPLOSION)
        assert row["control"] != "none" or float(row["relative_cost"]) == 1
    assert (compared / "out/fig14_controls.png").stat().st_size > 1000


def test_entropy_curves_are_geometric_means_of_the_runs(compared):
    rows = table(compared / "out/data/comparison_entropy.csv")
    assert len(rows) == 3 * 12 + 3 * 20  # fewer steps than points
    for row in rows:
        (folder,) = [p for p in (compared / "out" / row["sweep"]).iterdir() if p.name.endswith("-" + row["control"])]
        steps = [line["step"] for line in read_metrics(folder)]
        values = by_seed(folder, "entropy")[:, steps.index(int(row["step"]))]
        assert float(row["entropy"]) == pytest.approx(math.prod(values) ** (1 / 4), rel=1e-5)
        assert float(row["entropy_low"]) <= float(row["entropy"]) <= float(row["entropy_high"])
    assert (compared / "out/fig17_entropy_curves.png").stat().st_size > 1000


def test_a_second_run_of_a_suite_changes_no_result(compared):
    def contents():
        return {p: p.read_bytes() for p in (compared / "out").rglob("*.csv")} | {
            p: p.read_bytes() for p in (compared / "out").rglob("metrics.jsonl")
        }

    before = contents()
    assert cli.main(["ablate", str(compared / "both.toml"), "--out", str(compared / "out")]) == 0
    assert contents() == before and len(before) > 10


def test_candidates_are_fields_and_parameters():
    sweep = parse(
        'world = "bandit"\n[base]\ncontrol = "kl_cov"\n' + GRID.replace("{ fraction", "{ step_size = 2, fraction")
    )
    found = sweeps.candidates_of(sweep, sweep.points[0])
    assert found == [{"step_size": 2, "kl_cov.fraction": 0.1}, {"kl_cov.preset": "verl"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GRID, "no run of the sweep uses kl_cov"),
        ('[axes]\ncontrol = ["none", "kl_cov"]\n' + GRID + "none = [{ step_size = 1.0 }]", "all of one length"),
        ('[base]\ncontrol = "kl_cov"\n[tune.grid]\nkl_cov = []', "all of one length"),
        ('[base]\ncontrol = "kl_cov"\n[tune.grid]\nkl_cov = [{ step_size = -1.0 }]', "step_size must be positive"),
    ],
)
def test_a_mistake_in_a_grid_is_one_sentence(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse('world = "bandit"\n' + text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "arms=3"], "--set is for one sweep; "),
        (["--only", "0"], "--only is for one sweep; "),
        (["--tune", "3"], "--tune is for one sweep; "),
        (["--seeds", "0"], "seeds must be at least 1, got 0"),
    ],
)
def test_what_a_suite_cannot_do_is_one_sentence(compared, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["ablate", str(compared / "both.toml"), *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_suite_with_other_keys_is_refused(tmp_path):
    (tmp_path / "s.toml").write_text('sweeps = ["a"]\nseeds = 3')
    with pytest.raises(ValueError, match="its keys are description and sweeps"):
        sweep_files.suite(str(tmp_path / "s.toml"))


def test_the_sign_of_the_direction_counts(tmp_path):
    """With a metric to be minimised the smallest value is taken, and a candidate without one never is."""
    from entropy_theory.cli.grid import Tried, _best

    text = 'world = "bandit"\n[base]\ncontrol = "kl_cov"\n' + GRID.replace(
        "[tune.grid]", "[tune]\nmetric = METRIC\n[tune.grid]"
    )
    tried = [Tried({"a": 1}, math.nan, "failed"), Tried({"a": 2}, 2.0, ""), Tried({"a": 3}, 1.0, "")]
    for metric, best in (('"regret"', 3), ('"return"', 2)):
        sweep = parse(text.replace("METRIC", metric))
        assert _best(sweep, sweep.points[0], tried) == {"a": best}
    with pytest.raises(ValueError, match=r"all 1 candidates of run 0 .* failed: failed"):
        _best(sweep, sweep.points[0], tried[:1])
