"""The bandit world against a NumPy loop over seeds and bandits: updates per second, growth with seeds, memory.

Procedure of both: K = 10 arms, 64 Bernoulli pulls a rollout, GRPO advantages, 4 updates with PPO's clip on the same
pulls. An update is one gradient step of one bandit of one seed. The least that any program must do for one:

  exponentials   K for the new probabilities; ratios are quotients of them, one an arm and not one a pull
  draws          2 x 64 uniform numbers a rollout, 32 an update
  bytes          logits and probabilities, a few hundred bytes, which stay in the first cache

The floor taken here is the time of torch's `exp` over K numbers and of NumPy's generator for 32, both over long arrays.
Contenders run in turn, in one process and with one thread; shown is processor time, so that other work on the machine
moves it little, and the median of the ratios. Memory is measured in a process of its own for each length of run.

    python benchmarks/bandit.py [--skip-memory]
"""

import argparse
import math
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

from entropy_theory.draw import uniform
from sims import bandit, bandit_tally
from sims.bandit_config import BanditConfig
from sims.bandit_problem import make_problem

SAMPLES, UPDATES, ARMS, PROBLEMS = 64, 4, 10, 8
SIZES = {20: 400, 128: 150, 1024: 40}
"""Seeds and rollouts of the comparison."""
SCALING = (16, 64, 256, 1024, 4096)
REPEATS = 5


# --- contenders ---------------------------------------------------------------------------------------------------


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """log pi of one bandit."""
    below = logits - logits.max()
    return below - np.log(np.exp(below).sum())


def peer(
    reward: np.ndarray, logits: np.ndarray, rollouts: int, draws: Callable[[int], np.ndarray], step_size: float = 0.5
) -> np.ndarray:
    """One bandit of one seed trained in NumPy; draws(rollout) gives 2 x 64 uniform numbers. Returns the last logits."""
    for number in range(rollouts):
        old = log_softmax(logits)
        which, luck = draws(number).reshape(2, SAMPLES)
        edges = np.exp(old).cumsum()
        arm = np.minimum(np.searchsorted(edges, which * edges[-1], side="right"), ARMS - 1)
        won = (luck < reward[arm]).astype(float)
        advantage = (won - won.mean()) / (won.std(ddof=1) + 1e-6)
        old_logp = old[arm]
        for _ in range(UPDATES):
            logp = log_softmax(logits)
            ratio = np.exp(logp[arm] - old_logp)
            gain = ratio * advantage
            kept = np.where(gain <= np.clip(ratio, 0.8, 1.2) * advantage, gain, 0.0)
            by_arm = np.bincount(arm, kept, ARMS) / SAMPLES
            logits = logits + step_size * (by_arm - np.exp(logp) * by_arm.sum())
    return logits


class Unrecorded:
    """Stands in for a run directory and keeps the last state."""

    def load_state(self) -> None:
        return None

    def record(self, metrics: dict, state: dict) -> None:
        self.state = state


def ours(seeds: int, rollouts: int, **settings) -> torch.Tensor:
    """All seeds and bandits at once, as `entropy-theory sim bandit` trains them; the last logits."""
    plain = {"measure_every": 0, "record_every": 10**9}
    config = BanditConfig(seeds=seeds, problems=PROBLEMS, rollouts=rollouts, **(plain | settings))
    run = Unrecorded()
    bandit.train(config, run)
    return run.state["parameters"]


def check_same_numbers() -> float:
    """Largest difference of the logits after 25 rollouts on the same draws, over 2 seeds and all bandits."""
    rollouts, config = 25, BanditConfig(seeds=2, problems=PROBLEMS)
    problem, found = make_problem(config), ours(2, 25)
    largest = 0.0
    for seed, number in np.ndindex(2, PROBLEMS):
        key = problem.key[seed, number]
        draws = lambda step, key=key: uniform(key, torch.tensor(step), 2 * SAMPLES).numpy()  # noqa: E731
        reward, logits = problem.reward[seed, number, 0].numpy(), problem.parameters[seed, number, 0].numpy()
        own = peer(reward, logits, rollouts, draws)
        largest = max(largest, float(np.abs(own - found[seed, number, 0].numpy()).max()))
    return largest


# --- time ---------------------------------------------------------------------------------------------------------


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def peer_rate() -> float:
    """Updates a second of the NumPy loop; its time is the same for every bandit, so a few will do."""
    rng, rollouts, replicas = np.random.default_rng(0), 50, 8
    draws = lambda _: rng.random(2 * SAMPLES)  # noqa: E731
    starts = [(rng.random(ARMS), rng.standard_normal(ARMS)) for _ in range(replicas)]
    taken = seconds(lambda: [peer(*start, rollouts, draws) for start in starts])
    return replicas * rollouts * UPDATES / taken


def our_rate(seeds: int, rollouts: int, **settings) -> float:
    """Updates a second of the bandit world."""
    return seeds * PROBLEMS * rollouts * UPDATES / seconds(lambda: ours(seeds, rollouts, **settings))


def floor_rate() -> float:
    """Updates a second if only the exponentials and the draws had to be made."""
    updates, rng = 50_000, np.random.default_rng(0)
    numbers, draws = torch.rand(ARMS * updates, dtype=torch.float64), np.empty(32 * updates)
    out = torch.empty_like(numbers)
    taken = seconds(lambda: torch.exp(numbers, out=out)) + seconds(lambda: rng.random(out=draws))
    return updates / taken


def compare() -> None:
    """Rates of both, in turn."""
    print(f"\n{'seeds x bandits':>16}{'updates/s':>12}{'NumPy loop':>12}{'ratio':>8}{'of the floor':>14}")
    for seeds, rollouts in SIZES.items():
        pairs = [(our_rate(seeds, rollouts), peer_rate(), floor_rate()) for _ in range(REPEATS)]
        own, other = (statistics.median(column) for column in list(zip(*pairs, strict=True))[:2])
        ratio = statistics.median(a / b for a, b, _ in pairs)
        share = statistics.median(a / c for a, _, c in pairs)
        print(f"{seeds:>10} x {PROBLEMS:<3}{own:>12,.0f}{other:>12,.0f}{ratio:>8.1f}{100 * share:>12.1f} %")


def measurements() -> None:
    """What recording and measuring cost, as shares of the time of a run that does it."""
    print("\ncost of looking, 20 seeds x 8 bandits:  µs an update")
    kinds = {
        "nothing recorded": {},
        "a line every rollout (record_every = 1)": {"record_every": 1},
        "measured every rollout too (default)": {"record_every": 1, "measure_every": 1},
        "recorded and measured every 10th": {"record_every": 10, "measure_every": 10},
    }
    rates = {name: [] for name in kinds}
    for _ in range(REPEATS):
        for name, settings in kinds.items():
            rates[name].append(1e6 / our_rate(20, 60, **settings))
    for name, values in rates.items():
        print(f"  {name:42}{statistics.median(values):8.2f}")


def scaling() -> None:
    """Seconds per rollout of all seeds, and the exponent of their growth."""
    taken = {}
    for seeds in SCALING:
        rollouts = 32  # the same for all, as the first and the last are recorded and take longer
        runs = [seconds(lambda s=seeds, r=rollouts: ours(s, r)) / rollouts for _ in range(3)]
        taken[seeds] = statistics.median(runs)
    print("\nseeds       " + "".join(f"{seeds:>10}" for seeds in taken))
    print("ms a rollout" + "".join(f"{1e3 * t:>10.2f}" for t in taken.values()))
    for smallest in (SCALING[0], 256):
        used = [(math.log(s), math.log(t)) for s, t in taken.items() if s >= smallest]
        exponent = np.polyfit(*zip(*used, strict=True), 1)[0]
        print(f"grows as seeds^{exponent:.2f} from {smallest} seeds")


# --- memory -------------------------------------------------------------------------------------------------------


def peak_bytes() -> int:
    """Largest resident set of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count what the parent had before this program was started
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


TINY = {"seeds": 1, "problems": 1, "arms": 3, "samples": 8, "updates_per_rollout": 20, "step_size": 0.01}


def measure_memory(updates: int) -> None:
    """Train one tiny bandit for so many updates, with ten lines of metrics, and print the peak of this process."""
    rollouts = updates // TINY["updates_per_rollout"]
    config = BanditConfig(**TINY, rollouts=rollouts, record_every=max(1, rollouts // 10), measure_every=1)
    progress = lambda done, total, line: print(f"  {done:,} of {total:,} rollouts", file=sys.stderr)  # noqa: E731
    bandit.train(config, Unrecorded(), progress)
    print(peak_bytes())


def memory() -> None:
    """Peaks of a short and of a long run, each in a process of its own."""
    print("\npeak memory, one bandit with 3 arms")
    for updates in (10_000, 1_000_000):
        words = [sys.executable, __file__, "--memory", str(updates)]
        start = time.perf_counter()
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        peak = int(done.stdout.splitlines()[-1])
        print(f"  {updates:>9,} updates: {peak / 1e6:8.1f} MB, {time.perf_counter() - start:6.0f} s")


def main() -> None:
    """The tables, or with --memory one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", type=int, help="train for so many updates and print the peak memory only")
    parser.add_argument("--skip-memory", action="store_true", help="leave out the run of a million updates (minutes)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        measure_memory(options.memory)
        return
    print(f"torch {torch.__version__}, NumPy {np.__version__}, 1 thread, {os.cpu_count()} CPUs, ", end="")
    print(f"load {os.getloadavg()[0]:.1f}; logits differ by {check_same_numbers():.1e} from the NumPy loop's")
    bandit_tally.WORTH_COMPILING = 0  # runs here are short pieces of long ones
    ours(1, 2)
    compare()
    measurements()
    scaling()
    if not options.skip_memory:
        memory()


if __name__ == "__main__":
    main()
