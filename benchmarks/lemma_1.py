"""Lemma 1 in batch against its floor: time, and memory beyond the inputs.

For N x K float64 logits and as many changes, N K = 10,000,000, the least that any program must do:

  bytes   read 2 x 8 N K = 160 MB once; write 7 x 8 N = 56 MB of results at K = 10, 0.56 MB at K = 1000
  flops   two exponentials an element, about 45 operations as polynomials, and about 25 more for the sums:
          7e8 in all, a tenth of a second without vector instructions and a hundredth with eight lanes

The floor taken here is the time of two `torch.exp` passes over the same array into a buffer that is there already.
Each contender runs in turn with the floor, in one process; shown are medians, and the median of the ratios, so that
other work on the machine moves both. Memory is measured in a process of its own per contender.

    python benchmarks/lemma_1.py [--threads 1] [--numbers 10000000]
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from entropy_theory import remainder, theorems
from entropy_theory.lemma_1_batch import ENGINES, check_lemma_1, engine_module
from entropy_theory.softmax import entropy

ACTIONS = (10, 1000)
REPEATS = 11
Inputs = tuple[np.ndarray, np.ndarray, torch.Tensor]
"""Logits, changes, and room for two arrays of their size or for the results."""


# --- contenders ---------------------------------------------------------------------------------------------------


def two_exp_torch(z, d, room, threads):
    """The floor."""
    x, out = torch.from_numpy(z), room[: z.size].view(z.shape)
    for _ in range(2):
        torch.exp(x, out=out)


def two_exp_numpy(z, d, room, threads):
    """The same with NumPy, which has its own exp for AVX-512."""
    out = room[: z.size].view(z.shape).numpy()
    for _ in range(2):
        np.exp(z, out=out)


def batched(engine: str):
    """`check_lemma_1` with one engine, results into a buffer that is there already."""

    def run(z, d, room, threads):
        out = room[: 7 * len(z)].view(7, len(z))
        return check_lemma_1(torch.from_numpy(z), torch.from_numpy(d), threads=threads, engine=engine, out=out)

    return run


def new_results(z, d, room, threads):
    """`check_lemma_1` as it is called without further ado: results in new memory."""
    return check_lemma_1(torch.from_numpy(z), torch.from_numpy(d), threads=threads)


def plain_numpy(z, d, room, threads):
    """The formulas written down, whole arrays, without rounding bounds."""
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    with np.errstate(divide="ignore"):
        logp = np.log(p)
    logp[p == 0] = 0.0
    before = -(p * logp).sum(1)
    q = np.exp(z + d - (z + d).max(1, keepdims=True))
    q /= q.sum(1, keepdims=True)
    with np.errstate(divide="ignore"):
        log_q = np.log(q)
    log_q[q == 0] = 0.0
    after = -(q * log_q).sum(1)
    deviation = d - (p * d).sum(1, keepdims=True)
    centred = logp + before[:, None]
    first = -(p * centred * deviation).sum(1)
    second = first - 0.5 * (p * (1 + centred) * deviation**2).sum(1)
    spread = torch.from_numpy(d.max(1) - d.min(1))
    bounds = remainder.remainder_bound(spread, z.shape[1]), remainder.second_order_remainder_bound(spread, z.shape[1])
    return before, after, first, second, spread, *bounds


def torch_whole(z, d, room, threads):
    """The package's functions of one statement each, whole tensors."""
    z, d = torch.from_numpy(z), torch.from_numpy(d)
    actions, spread = z.shape[1], remainder.spread(d, torch.isfinite(z))
    bounds = remainder.remainder_bound(spread, actions), remainder.second_order_remainder_bound(spread, actions)
    entropies = entropy(z), entropy(z + d)
    predictions = theorems.entropy_change_first_order(z, d), theorems.entropy_change_second_order(z, d)
    return *entropies, *predictions, spread, *bounds


def contenders() -> dict[str, Callable]:
    """By name as printed; engines that are not installed are left out."""
    found = {"two exp, torch (floor)": two_exp_torch, "two exp, NumPy": two_exp_numpy}
    for engine in ENGINES:
        try:
            engine_module(engine)
        except ValueError as error:
            print(f"left out: {error}")
        else:
            found[f"check_lemma_1, {engine}"] = batched(engine)
    return found | {
        "check_lemma_1, no buffer": new_results,
        "plain NumPy": plain_numpy,
        "torch, whole tensors": torch_whole,
    }


SLOW = {"plain NumPy": 3, "torch, whole tensors": 1}
"""Repeats of the slow ones; a first run to touch the memory would not help, they ask for new memory every time."""


def inputs(numbers: int, actions: int) -> Inputs:
    """Random policies and changes, made in place so that nothing larger was ever in memory."""
    rng = np.random.default_rng(0)
    z, d = np.empty((numbers // actions, actions)), np.empty((numbers // actions, actions))
    rng.standard_normal(out=z)
    rng.standard_normal(out=d)
    z *= 3
    d *= 0.1
    return z, d, torch.zeros(max(z.size, 7 * len(z)), dtype=torch.float64)


# --- time ---------------------------------------------------------------------------------------------------------


def seconds(run: Callable, data: Inputs, threads: int) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    run(*data, threads)
    return time.perf_counter() - start


def paired(name: str, run: Callable, data: Inputs, threads: int) -> tuple[float, float]:
    """Median seconds of a contender, and the median of its ratios to the floor run just before it."""
    if name not in SLOW:
        seconds(run, data, threads)  # compiles, and touches the memory
    pairs = [
        (seconds(two_exp_torch, data, threads), seconds(run, data, threads)) for _ in range(SLOW.get(name, REPEATS))
    ]
    return statistics.median(own for _, own in pairs), statistics.median(own / floor for floor, own in pairs)


# --- memory -------------------------------------------------------------------------------------------------------


def peak_bytes() -> int:
    """Largest resident set of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count what the parent had before this program was started
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure_memory(name: str, numbers: int, actions: int, threads: int) -> None:
    """Print how far one run raises the peak over inputs, results and a warmed-up library."""
    run = contenders()[name]
    z, d, room = inputs(64 * actions, actions)
    run(z, d, room, threads)
    data = inputs(numbers, actions)
    before = peak_bytes()
    kept = run(*data, threads)  # noqa: F841 (so that results count)
    print(json.dumps(peak_bytes() - before))


def memory(name: str, numbers: int, actions: int, threads: int) -> int:
    """`measure_memory` in a process of its own."""
    words = [sys.executable, __file__, "--memory", name, "--actions", str(actions)]
    words += ["--numbers", str(numbers), "--threads", str(threads)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# --- the table ----------------------------------------------------------------------------------------------------


def table(runs: dict[str, Callable], numbers: int, actions: int, threads: int) -> None:
    """Print one line per contender for one number of actions."""
    data = inputs(numbers, actions)
    size = 2 * data[0].nbytes
    print(f"\nN = {len(data[0]):,}, K = {actions}; inputs {size / 1e6:.0f} MB; load {os.getloadavg()[0]:.1f}")
    print(f"{'':26}{'ms':>8}{'/ floor':>9}{'/ plain':>9}{'extra MB':>10}{'% of inputs':>13}")
    lines = {}
    for name, run in runs.items():
        extra = 0 if name.startswith("two exp") else memory(name, numbers, actions, threads)
        lines[name] = (*paired(name, run, data, threads), extra)
    plain = lines["plain NumPy"][1]
    for name, (time_taken, ratio, extra) in lines.items():
        shown = f"{1e3 * time_taken:8.1f}{ratio:9.2f}{ratio / plain:9.3f}"
        print(f"{name:26}{shown}{extra / 1e6:10.1f}{100 * extra / size:13.1f}")


def main() -> None:
    """The tables, or with --memory one contender's memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--numbers", type=int, default=10_000_000, help="N K, logits in all")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch and of check_lemma_1")
    parser.add_argument("--memory", help="measure the memory of this contender only")
    parser.add_argument("--actions", type=int, help="for --memory")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        measure_memory(options.memory, options.numbers, options.actions, options.threads)
        return
    print(f"torch {torch.__version__}, NumPy {np.__version__}, {options.threads} thread(s), {os.cpu_count()} CPUs")
    runs = contenders()
    for actions in ACTIONS:
        table(runs, options.numbers, actions, options.threads)
    print("\nThe first lines of check_lemma_1 write their results, 7 numbers an instance, into a buffer of the caller;")
    print("the last three make their own, which counts in their memory.")


if __name__ == "__main__":
    main()
