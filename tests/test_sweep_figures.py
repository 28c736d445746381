"""The figures of the sweeps that come with the worlds: drawn from committed data, which are of the committed sweeps."""

import importlib
import math
import subprocess
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from entropy_theory import cli
from entropy_theory.cli import sweep_files
from entropy_theory.cli.engines import ENGINES
from entropy_theory.cli.engines.jobs import perform
from entropy_theory.controls import CONTROLS
from entropy_theory.statistics import bootstrap_interval
from paper_figs import catalogue, fig09_entropy_collapse, fig12_cartpole_kernel, fig13_deceptive_controls
from paper_figs.style import DATA, power_law, read_csv

MOST_BYTES = 300_000
SWEEPS = {name: sweep_files.load(name, {}) for name in sweep_files.committed()}
DRAWN = {name: sweep for name, sweep in SWEEPS.items() if sweep.figure}


def test_every_figure_of_a_sweep_is_in_the_catalogue():
    named = {figure.__name__.rpartition(".")[2] for figure in catalogue.SWEEPS}
    assert {sweep.figure for sweep in DRAWN.values()} == named


@pytest.mark.parametrize("name", DRAWN)
def test_the_figure_draws_from_committed_data(name, tmp_path):
    figure = importlib.import_module(f"paper_figs.{DRAWN[name].figure}")
    png = figure.draw(DATA, tmp_path)
    assert png.stat().st_size > 20_000 and len(figure.CAPTION) > 40
    assert (DATA.parent.parent / "docs/figures" / png.name).exists()


@pytest.mark.parametrize("name", DRAWN)
def test_committed_data_are_of_the_committed_sweep(name):
    files = sorted(DATA.glob(f"{name}_*.csv"))
    assert files
    for file in files:
        assert file.stat().st_size <= MOST_BYTES
        rows = read_csv(file)
        for point in DRAWN[name].points:
            row = next(row for row in rows if row["index"] == point.index)
            assert str(row["label"]) == point.label
            for key, value in point.axes.items():
                if key in row:
                    same = row[key] == value if isinstance(value, float | int) and type(value) is not bool else False
                    assert same or str(row[key]) == str(value) or (value is None and math.isnan(row[key])), (key, value)


def test_single_seeds_are_kept_at_few_steps_from_first_to_last():
    rows = read_csv(DATA / "cartpole_kernel_seeds.csv")
    runs = {point.index: point.config for point in SWEEPS["cartpole_kernel"].points}
    for index, config in runs.items():
        for seed in range(config.seed, config.seed + config.seeds):
            steps = [row["step"] for row in rows if (row["index"], row["seed"]) == (index, seed)]
            assert 20 <= len(steps) <= 30 and steps == sorted(set(steps))
            assert steps[0] == 1 and steps[-1] > config.rollouts - config.measure_every


class Here:
    """An engine without processes."""

    def __init__(self, place):
        pass

    def start(self, jobs):
        for job in jobs:
            perform(job)
        return list(range(len(jobs)))

    def wait(self, handles, timeout):
        return list(handles)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize(
    ("name", "words", "drawn"),
    [
        ("rare_good_arm", [], "fig11_rare_good_arm"),
        ("rare_good_arm", ["--only", "1"], "rare_good_arm"),
        ("rare_good_arm", ["--set", "rollouts=2"], "rare_good_arm"),
        ("rare_good_arm", ["--seeds", "1"], "rare_good_arm"),
        ("mine", [], "mine"),
    ],
)
def test_a_part_or_a_variant_of_a_sweep_has_the_general_figure(name, words, drawn, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(ENGINES, "local", Here)
    text = (sweep_files.committed()["rare_good_arm"].read_text()).replace("seeds = 20", "seeds = 2")
    (tmp_path / f"{name}.toml").write_text(text.replace("rollouts = 100", "rollouts = 12\nproblems = 1"))
    status = cli.main(["ablate", str(tmp_path / f"{name}.toml"), "--out", str(tmp_path / "out"), *words])
    out, _ = capsys.readouterr()
    assert status == 0, out
    assert f"figure:  {tmp_path / 'out' / drawn}.png" in out


def test_make_copies_what_the_figures_read():
    """The list in the Makefile is the one of the committed files."""
    line = ["make", "-pn", "-f", "Makefile", "help"]
    text = subprocess.run(line, capture_output=True, text=True, cwd=DATA.parent.parent, check=True).stdout
    lists = dict(
        line.split(" := ", 1) for line in text.splitlines() if line.startswith(("SWEEPS :=", "SWEEP_TABLES :="))
    )
    assert set(lists["SWEEPS"].split()) == set(DRAWN)
    there = {file.stem for name in DRAWN for file in DATA.glob(f"{name}_*.csv")}
    assert set(lists["SWEEP_TABLES"].split()) == there


def test_every_control_is_on_the_deceptive_bandit():
    sweep = SWEEPS["controls_bandit"]
    assert sorted(point.config.control for point in sweep.points) == sorted(CONTROLS)
    assert {point.config.family for point in sweep.points} == {"deceptive"}


def test_the_parameters_of_the_long_search_are_those_searched():
    sweep = SWEEPS["deceptive_controls"]
    assert sweep.seeds >= 50 and sweep.tune.seeds >= 10
    for point in sweep.points:
        searched = set(sweep.tune.space["all"]) | {
            key for name, space in sweep.tune.space.items() if name == point.config.control for key in space
        }
        given_here = {key.partition(".")[2] for key in point.config.set}
        assert given_here <= {key.rpartition(".")[2] for key in searched}
        assert "step_size" in searched


def test_enough_seeds():
    for name, sweep in DRAWN.items():
        assert sweep.seeds >= (20 if sweep.world == "bandit" else 10), name


# --- what the figures compute --------------------------------------------------------------------------------------


@given(st.floats(1e-3, 1e3), st.floats(-3, 3))
def test_the_half_life_of_an_exponential_is_exact(life, start):
    """exp(-t log 2 / life) halves at `life`, and a straight line of logarithms is interpolated without error."""
    steps = np.linspace(0, 3 * life, 40)
    height = math.exp(start) * 2.0 ** (-steps / life)
    curve = [
        {"step": 1 + t, "entropy": h, "entropy_low": h, "entropy_high": h} for t, h in zip(steps, height, strict=True)
    ]
    # 1 + t rounds by u (1 + 3 life); logarithms of size up to |start| + 3 log 2 round by u and are divided by the slope
    # log 2 / life; ten roundings in all
    u = 2.0**-53
    bound = 10 * u * ((1 + 3 * life) + (abs(start) + 3) * life / math.log(2))
    for found in fig09_entropy_collapse.half_life(curve):
        assert abs(found - life) <= bound


def test_a_curve_that_never_halves_has_no_half_life():
    curve = [{"step": t, "entropy": 1.0, "entropy_low": 0.9, "entropy_high": 1.1} for t in range(1, 5)]
    assert all(math.isnan(found) for found in fig09_entropy_collapse.half_life(curve))


positive = st.floats(0.01, 100)


@given(st.lists(st.tuples(positive, positive), min_size=3, max_size=12, unique_by=lambda pair: pair[0]))
def test_the_power_law_is_the_least_squares_line_of_logarithms(points):
    x, y = (np.log([pair[i] for pair in points]) for i in (0, 1))
    n, exact_x, exact_y = len(x), [Fraction(float(v)) for v in x], [Fraction(float(v)) for v in y]
    dx, dy = ([v - sum(values) / n for v in values] for values in (exact_x, exact_y))
    power = sum(d * d for d in dx)
    assume(power > Fraction(1, 100))
    slope = sum(a * b for a, b in zip(dx, dy, strict=True)) / power
    law = power_law(*(np.array([pair[i] for pair in points]) for i in (0, 1)))
    # A centred value errs by (n + 1) u of the largest, so each sum of n products of centred values by that, n times and
    # times the other factor (4: both factors, and the sum's own roundings, which are smaller); the slope by both sums.
    u, tall, wide = 2.0**-53, float(np.abs(y).max()), float(np.abs(x).max())
    numerator, power_error = (4 * n * (n + 1) * u * 2 * wide * height for height in (2 * tall, 2 * wide))
    assert abs(law.slope - float(slope)) <= (numerator + abs(float(slope)) * power_error) / float(power)
    assert law.low <= law.slope <= law.high


def test_the_panels_of_the_collapse_vary_one_thing():
    rows = read_csv(DATA / "entropy_collapse_curves.csv")
    for varied in fig09_entropy_collapse.PANELS:
        for gradient in ("sampled", "exact"):
            panel = fig09_entropy_collapse.panel(rows, varied, gradient=gradient)
            assert len({row[varied] for row in panel}) >= 5
            for other in set(fig09_entropy_collapse.BASE) - {varied}:
                assert len({row[other] for row in panel}) == 1
            per_run = {row["index"]: row[varied] for row in panel}
            assert len(set(per_run.values())) == len(per_run)


def test_rates_without_gradient_are_left_out_of_the_ratio():
    assert fig12_cartpole_kernel.size_ratio(np.array([2.0, 0.0, -6.0]), np.array([-1.0, 0.0, 2.0])) == 4 / 1.5


def test_the_share_of_seeds_is_read_half_way_between_the_arms():
    rows = [{"control": "none", "threshold": t / 10, "share": 1 - t / 10} for t in range(11)]
    assert fig13_deceptive_controls.found(rows, "none")["threshold"] in (0.7, 0.8)


def test_the_summary_is_the_bootstrap_of_what_the_runs_ended_in():
    """The figure's interval of a share of seeds agrees with one made of zeros and ones."""
    rows = read_csv(DATA / "deceptive_controls_profiles.csv")
    seeds = SWEEPS["deceptive_controls"].seeds
    for control in (point.config.control for point in SWEEPS["deceptive_controls"].points):
        row = fig13_deceptive_controls.found(rows, control)
        count = round(row["share"] * seeds)
        assert abs(count - row["share"] * seeds) <= 1e-4  # six digits in the file
        again = bootstrap_interval([1.0] * count + [0.0] * (seeds - count))
        # two bootstraps of a binomial: each end lies on the lattice 1 / seeds, and may miss by a step or two
        assert abs(again.low - row["share_low"]) <= 2 / seeds and abs(again.high - row["share_high"]) <= 2 / seeds
