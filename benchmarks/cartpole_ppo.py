"""PPO on CartPole-v1, many seeds at once: this package beside PureJaxRL and CleanRL, speed and learning.

All three train with CleanRL's hyper-parameters: 4 environments x 128 steps, 4 epochs x 4 minibatches, actor and critic
of two 64-unit tanh layers. The least arithmetic of one environment step, from the shapes alone:

  forward   F = 2 (4 64 + 64 64 + 64 2) + 2 (4 64 + 64 64 + 64 1) = 17.8 kFLOP, actor and critic
  backward  once more F for the weights and F less the first layer's 2 kFLOP for the activations
  in all    F to act and to value the state, and in each of 4 epochs forward and backward: 227 kFLOP

The floor is this at the speed of a large sgemm on the same threads, the fastest of all rounds. It leaves out 1,280 tanh
a step, the environments and everything else that is not a matrix product.

Every contender is a process of its own, restricted to the same processors (CleanRL, a loop over steps, to one thread),
in turn, several rounds; shown are medians, and medians of the ratios within a round. Compilation, or a first short
training of the same shapes, is timed apart. Our time begins after the first rollout, when the worker processes have
started, and includes what a run writes: metrics of every rollout, and in every hundredth the measurements of entropy
changes and a state to resume from. Steps per second of processor time are shown too: other work on the machine moves
them less, but starting the workers counts in ours. "2 processes" is
PureJaxRL with half the seeds in each of two, one a processor, which XLA uses better than two threads.

Learning is counted by `peers/steps_to_return.py` for all: environment steps of one seed until, at the end of a rollout,
its last 100 finished episodes average at least 475. Medians over seeds, 95 % bootstrap intervals; a seed that never got
there counts as having taken the whole run, which moves no median that lies below.

Ours runs with the details that both peers publish: the value loss clipped, an episode cut at 500 steps taken for
ended, advantages normalised in each minibatch. What is left: a reset takes one step, which is neither counted nor
learned from, and everything that is measured about entropy.

    make benchmark-peers                       (once: PureJaxRL's environment)
    python benchmarks/cartpole_ppo.py          (--skip learning: speed alone)
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "peers")]

from steps_to_return import TARGET, WINDOW  # noqa: E402

PEER_PYTHON = HERE.parent / ".venv-benchmarks" / "bin" / "python"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
EPOCHS, HIDDEN, ENVS, STEPS = 4, 64, 4, 128

OURS, JAX, JAX_SPLIT, CLEANRL = "entropy-theory", "PureJaxRL", "PureJaxRL, 2 processes", "CleanRL"
MEASURE_EVERY = 100
"""Rollouts between our measurements of entropy changes."""
LONGEST = 900
"""Seconds after which a contender is taken to hang."""
WANTED = {JAX: 1.5, CLEANRL: 40.0}
"""Least ratio of our steps per second to theirs."""


def flops_per_step(inputs: int = 4, hidden: int = HIDDEN, actions: int = 2) -> int:
    """Multiplications and additions of matrix products in one environment step, as the docstring above counts them."""
    first = 2 * 2 * inputs * hidden
    forward = first + 2 * 2 * hidden * hidden + 2 * hidden * (actions + 1)
    return forward + EPOCHS * (forward + forward + forward - first)


# --- what runs in a process of its own ----------------------------------------------------------------------------


def train_ours(seeds: int, steps: int, threads: int, seed: int, engine: str) -> tuple[list[int | None], float]:
    """One training; steps to return of each seed, and steps per second of all together after the first rollout."""
    from entropy_theory.runs import Run
    from sims.cartpole import config_record, train
    from sims.cartpole_config import CartPoleConfig

    config = CartPoleConfig(
        seeds=seeds,
        total_timesteps=steps,
        envs=ENVS,
        steps=STEPS,
        epochs=EPOCHS,
        minibatches=4,
        gae_lambda=0.95,
        lr=2.5e-4,
        control="entropy_bonus",
        set={"entropy_bonus.coef": 0.01},
        hidden=HIDDEN,
        seed=seed,
        threads=threads,
        engine=engine,
        measure_every=MEASURE_EVERY,
        save_every=MEASURE_EVERY,
        value_clip=0.2,
        bootstrap_truncated=False,
        normalise="minibatch",
    )
    reached: list[int | None] = [None] * seeds
    clock: list[tuple[float, int]] = []

    def watch(done: int, total: int, line: dict) -> None:
        records = zip(line["episode_return"], line["episode_return_count"], strict=True)
        for i, (mean, count) in enumerate(records):
            if reached[i] is None and count >= WINDOW and mean >= TARGET:
                reached[i] = int(line["env_steps"][i])
        clock.append((time.perf_counter(), int(line["env_steps"].sum())))

    with tempfile.TemporaryDirectory() as folder, Run(Path(folder) / "run", config_record(config)) as run:
        train(config, run, watch)
    (begin, first), (end, last) = clock[0], clock[-1]
    return reached, (last - first) / (end - begin)


def measure_ours(seeds: int, steps: int, threads: int, seed: int, engine: str) -> dict:
    """One training after a short one of the same shapes."""
    start = time.perf_counter()
    train_ours(seeds, 2 * ENVS * STEPS, threads, seed, engine)
    warm, before = time.perf_counter(), os.times()
    reached, rate = train_ours(seeds, steps, threads, seed, engine)
    after = os.times()
    return {
        "compile_seconds": warm - start,
        "steps_per_second": rate,
        "steps_per_cpu_second": seeds * steps / sum(b - a for a, b in zip(before[:4], after[:4], strict=True)),
        "steps_to_return": reached,
    }


def measure_sgemm(threads: int, size: int = 2048, repeats: int = 20, product=None) -> float:
    """Operations per second of the fastest of several large float32 matrix products, torch's or those of `product`."""
    import torch

    torch.set_num_threads(threads)
    a, b, out = (torch.rand(size, size) for _ in range(3))
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(a, b, out=out) if product is None else product(a, b)
        taken.append(time.perf_counter() - start)
    return 2 * size**3 / min(taken)


# --- the contenders -----------------------------------------------------------------------------------------------


def start(words: list, threads: int, processors: set[int]) -> subprocess.Popen:
    """A process whose output is one line of JSON."""
    environment = os.environ | {name: str(threads) for name in THREAD_VARIABLES}
    process = subprocess.Popen([str(w) for w in words], stdout=subprocess.PIPE, text=True, env=environment)
    os.sched_setaffinity(process.pid, processors)
    return process


def finish(process: subprocess.Popen) -> dict | float:
    """What the process printed. Raises SystemExit if it failed (it has printed why) or hangs."""
    try:
        out, _ = process.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        process.kill()
        sys.exit(f"stopped: {' '.join(process.args)} gave no answer within {LONGEST} s")
    if process.returncode:
        sys.exit(f"stopped: {' '.join(process.args)} ended with status {process.returncode}")
    return json.loads(out.splitlines()[-1])


def words_for(name: str, seeds: int, steps: int, seed: int, threads: int, engine: str) -> list:
    """Command line of one contender."""
    size = ["--seeds", seeds, "--steps", steps, "--seed", seed]
    return {
        OURS: [sys.executable, __file__, "--contender", "ours", "--engine", engine, "--threads", threads, *size],
        JAX: [PEER_PYTHON, HERE / "peers" / "purejaxrl_ppo.py", *size],
        CLEANRL: [sys.executable, HERE / "peers" / "cleanrl_ppo.py", *size],
    }[name]


def measure(name: str, seeds: int, steps: int, seed: int, processors: list[int], engine: str) -> dict:
    """Run one contender to its end."""
    if name == JAX_SPLIT:
        share = seeds // 2
        halves = [
            start(words_for(JAX, share, steps, seed + k * share, 1, engine), 1, {processor})
            for k, processor in enumerate(processors[:2])
        ]
        first, second = map(finish, halves)
        return {
            "compile_seconds": max(first["compile_seconds"], second["compile_seconds"]),
            "steps_per_second": first["steps_per_second"] + second["steps_per_second"],
            "steps_per_cpu_second": (first["steps_per_cpu_second"] + second["steps_per_cpu_second"]) / 2,
            "steps_to_return": first["steps_to_return"] + second["steps_to_return"],
        }
    threads = 1 if name == CLEANRL else len(processors)
    return finish(start(words_for(name, seeds, steps, seed, threads, engine), threads, set(processors)))


# --- the tables ---------------------------------------------------------------------------------------------------


def speed(names: list[str], options, processors: list[int]) -> None:
    """Rounds of all contenders in turn, and how far from the floor ours is."""
    threads, sizes = len(processors), {CLEANRL: (1, options.cleanrl_steps)}
    sgemm = [sys.executable, __file__, "--contender", "sgemm", "--threads", threads]
    gemm, found = [], {name: [] for name in names}
    for number in range(options.rounds):
        gemm.append(finish(start(sgemm, threads, set(processors))))
        for name in names:
            seeds, steps = sizes.get(name, (options.seeds, options.speed_steps))
            found[name].append(measure(name, seeds, steps, 1000 * number, processors, options.engine))
            rate, load = found[name][-1]["steps_per_second"], os.getloadavg()[0]
            print(
                f"round {number + 1} of {options.rounds}: {name}, {rate:,.0f} steps/s, load {load:.1f}", file=sys.stderr
            )
    print(f"\n{'':26}{'seeds':>6}{'steps/s':>11}{'steps/CPU s':>13}{'ours / it':>11}{'wanted':>8}{'compile s':>11}")
    own = [x["steps_per_second"] for x in found[OURS]]
    for name, results in found.items():
        rates = [x["steps_per_second"] for x in results]
        per_cpu = median(x["steps_per_cpu_second"] for x in results)
        ratio = median(mine / its for mine, its in zip(own, rates, strict=True))
        wanted = f"{WANTED[name]:8.1f}" if name in WANTED else " " * 8
        compiling = median(x.get("compile_seconds", 0.0) for x in results)
        seeds, _ = sizes.get(name, (options.seeds, 0))
        print(f"{name:26}{seeds:6}{median(rates):11,.0f}{per_cpu:13,.0f}{ratio:11.2f}{wanted}{compiling:11.1f}")
    floor = max(gemm) / flops_per_step()
    print(
        f"floor: {flops_per_step():,} FLOP a step at {max(gemm) / 1e9:.0f} GFLOP/s (sgemm, {threads} threads) are "
        f"{floor:,.0f} steps/s; ours reaches {100 * median(own) / floor:.0f} % of it"
    )


def interval(steps: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    from scipy.stats import bootstrap

    found = bootstrap((steps,), np.median, method="percentile", rng=np.random.default_rng(0), vectorized=True)
    return found.confidence_interval.low, found.confidence_interval.high


def learning(names: list[str], options, processors: list[int]) -> None:
    """Steps to return over seeds, and whether each median lies in the other's interval."""
    print(f"\n{'':26}{'seeds':>6}{'median steps':>14}{'95 % interval':>22}{'never':>7}{'steps/s':>12}")
    found = {}
    for name in names:
        result = measure(name, options.seeds, options.steps, 0, processors, options.engine)
        reached = result["steps_to_return"]
        steps = np.array([options.steps if x is None else x for x in reached], float)
        low, high = interval(steps)
        found[name] = float(np.median(steps)), low, high
        print(
            f"{name:26}{len(steps):6}{np.median(steps):14,.0f}{f'{low:,.0f} to {high:,.0f}':>22}"
            f"{reached.count(None):7}{result['steps_per_second']:12,.0f}",
            flush=True,
        )
    for name in names[1:]:
        ours, other = found[OURS], found[name]
        within = [other[1] <= ours[0] <= other[2], ours[1] <= other[0] <= ours[2]]
        print(
            f"ours within the interval of {name}: {'yes' if within[0] else 'no'}; "
            f"{name} within ours: {'yes' if within[1] else 'no'}"
        )


def available(skip: list[str]) -> Iterator[str]:
    """Contenders that can run here, ours first."""
    yield OURS
    for name in (JAX, JAX_SPLIT, CLEANRL):
        if any(word.lower() in name.lower() for word in skip):
            continue
        if name != CLEANRL and not PEER_PYTHON.exists():
            print(f"left out: {name}, for want of {PEER_PYTHON}; make it with: make benchmark-peers")
            continue
        yield name


def main() -> None:
    """The two tables, or with --contender one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of the speed table")
    parser.add_argument("--seeds", type=int, default=32, help="trained at once")
    parser.add_argument("--steps", type=int, default=500_000, help="environment steps of each seed, learning")
    parser.add_argument("--speed-steps", type=int, default=204_800, help="the same, speed")
    parser.add_argument("--cleanrl-steps", type=int, default=10_240, help="the same, CleanRL's one seed")
    parser.add_argument("--threads", type=int, default=2, help="processors that every contender may use")
    parser.add_argument("--engine", default="auto", choices=("auto", "torch", "numba"), help="ours")
    parser.add_argument("--skip", nargs="*", default=[], help="speed, learning, purejaxrl or cleanrl")
    parser.add_argument("--contender", choices=("ours", "sgemm"), help="measure this one and print one line of JSON")
    parser.add_argument("--seed", type=int, default=0, help="first seed, for --contender")
    options = parser.parse_args()
    if options.contender == "ours":
        print(json.dumps(measure_ours(options.seeds, options.steps, options.threads, options.seed, options.engine)))
        return
    if options.contender == "sgemm":
        print(json.dumps(measure_sgemm(options.threads)))
        return
    from sims.engine import resolve_engine

    processors = sorted(os.sched_getaffinity(0))[: options.threads]
    print(
        f"{len(processors)} processors, load {os.getloadavg()[0]:.1f}; {', '.join(THREAD_VARIABLES)} = "
        f"{len(processors)} (1 for CleanRL); our engine: {resolve_engine(options.engine)}"
    )
    names = list(available(options.skip))
    if "speed" not in options.skip:
        speed(names, options, processors)
    if "learning" not in options.skip:
        learning([OURS, *([JAX] if JAX in names else [])], options, processors)


if __name__ == "__main__":
    main()
