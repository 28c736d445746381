"""CartPole PPO from 8 to 4,096 seeds trained at once: cost of an environment step, and memory.

CleanRL's hyper-parameters (4 environments x 128 steps, 4 epochs x 4 minibatches, two 64-unit tanh layers), one run
directory each, entropy changes measured in the first rollout only, a state saved at the end only (it takes 0.1 MB a
seed, so saving it in every rollout, the default, is felt at thousands of seeds). Every size is a process of its own.
Counted is wall time between the first rollout and the last, so the machine should be quiet. If no seed costs another
anything, time is proportional to seeds: exponent 1 of a line fitted to the logarithms. Below some 100 seeds it is
smaller, because the loop's own overhead of a rollout is shared by the seeds. Memory is that of the run and of as many
workers as it has.

Floors of one seed:

  arithmetic   227 kFLOP an environment step (`cartpole_ppo.py` counts them)
  memory       9.2 k weights with two moments and a gradient, 0.15 MB; both hidden layers of both networks for a
               minibatch of 128, 0.26 MB; a rollout of 512 steps, 0.03 MB: 0.44 MB in float32

    python benchmarks/cartpole_seeds.py [--threads 2] [--engine torch] [--largest 1024]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SIZES = (8, 32, 128, 512, 2048, 4096)
STEPS_OF_ALL = 2_000_000
"""Environment steps timed in each size, at least three rollouts."""


def measure(seeds: int, threads: int, engine: str) -> dict:
    """Train so many seeds; seconds per environment step after the first rollout, and peak memory, MB."""
    from entropy_theory.runs import Run
    from sims.cartpole import config_record, train
    from sims.cartpole_config import CartPoleConfig

    timed = max(3, min(200, STEPS_OF_ALL // (512 * seeds)))
    rollouts = timed + 2
    config = CartPoleConfig(
        seeds=seeds,
        total_timesteps=512 * rollouts,
        envs=4,
        steps=128,
        epochs=4,
        minibatches=4,
        gae_lambda=0.95,
        lr=2.5e-4,
        control="entropy_bonus",
        set={"entropy_bonus.coef": 0.01},
        measure_every=1_000_000,
        save_every=1_000_000,
        threads=threads,
        engine=engine,
    )
    clocks = []

    def watch(done: int, total: int, line: dict) -> None:
        clocks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder, Run(Path(folder) / "run", config_record(config)) as run:
        train(config, run, watch)
    own, largest_worker = (
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return {"wall": (clocks[-2] - clocks[0]) / (timed * 512 * seeds), "peak": own + threads * largest_worker}


def in_a_process(seeds: int, threads: int, engine: str) -> dict:
    """`measure` in a process of its own, whose peak memory is that size's alone."""
    words = [sys.executable, __file__, "--only", seeds, "--threads", threads, "--engine", engine]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def exponent(sizes: list[int], costs: list[float]) -> float:
    """Slope of log cost over log size."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def main() -> None:
    """The table and the exponents; with --only one size, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engine", default="auto", choices=("auto", "numba", "torch"))
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="most seeds")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if options.only:
        print(json.dumps(measure(options.only, options.threads, options.engine)))
        return
    in_a_process(SIZES[0], options.threads, options.engine)  # compiles, where the engine does
    sizes = [size for size in SIZES if size <= options.largest]
    found = []
    print(f"{'seeds':>6}{'steps/s':>12}{'us/step':>9}{'peak MB':>9}{'MB/seed':>9}")
    for size in sizes:
        found.append(row := in_a_process(size, options.threads, options.engine))
        rate, cost, peak = 1 / row["wall"], row["wall"] * 1e6, row["peak"]
        per_seed = (peak - found[0]["peak"]) / (size - sizes[0]) if size > sizes[0] else float("nan")
        print(f"{size:6}{rate:12,.0f}{cost:9.2f}{peak:9.0f}{per_seed:9.2f}", flush=True)
    times = [size * row["wall"] for size, row in zip(sizes, found, strict=True)]
    large = [i for i, size in enumerate(sizes) if size >= 128]
    print(f"time grows as seeds^{exponent(sizes, times):.2f}", end="")
    if len(large) > 1:
        print(f"; from 128 seeds as seeds^{exponent([sizes[i] for i in large], [times[i] for i in large]):.2f}", end="")
    print(f"; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
