"""Cold starts of the command line: wall time, CPU time and peak memory of a fresh process.

The targets: `--help` under 0.5 s, `check --profile quick` at most 20 s on two cores, imports included.

    python benchmarks/start_up.py
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = Path(sys.executable).with_name("entropy-theory")
COMMANDS = {  # words after the program: (runs, most seconds wanted)
    ("--help",): (7, 0.5),
    ("check", "--profile", "quick"): (3, 20.0),
}


def run(words: tuple[str, ...]) -> tuple[float, float, float, int]:
    """(wall seconds, CPU seconds, peak MB, exit status) of one process."""
    start = time.perf_counter()
    process = subprocess.Popen([PROGRAM, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit, process.returncode


def main() -> None:
    """Run each command several times and print a line for it."""
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    print(f"{'entropy-theory ...':26}{'wall s':>8}{'worst':>8}{'CPU s':>8}{'peak MB':>9}{'wanted s':>10}{'exit':>6}")
    for words, (runs, wanted) in COMMANDS.items():
        wall, cpu, peak, status = zip(*(run(words) for _ in range(runs)), strict=True)
        cells = f"{statistics.median(wall):8.2f}{max(wall):8.2f}{statistics.median(cpu):8.2f}{max(peak):9.0f}"
        print(f"{' '.join(words):26}{cells}{wanted:10.1f}{max(status):6d}")


if __name__ == "__main__":
    main()
