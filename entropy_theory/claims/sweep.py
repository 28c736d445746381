"""Lemma 1 on a hundred million random instances: constant memory, and a kill loses a few seconds of work.

Chunk number c of the instances is a function of (seed, c) alone, so an interrupted sweep goes on where it stopped
and ends with the result of an uninterrupted one.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from entropy_theory.claims.sweep_instances import draw
from entropy_theory.lemma_1_batch import check_lemma_1, engine_module
from entropy_theory.lemma_1_batch.formulas import coefficients
from entropy_theory.runs import Run, write_atomic

INSTANCES = 100_000_000
CHUNK = 16_384
"""Instances drawn and checked at once: a few MB at 10 actions."""
SAVE_SECONDS = 5.0
FORMS = ("first", "second")
BINS = 65
"""Bin i of a histogram counts ratios from 2^(i - 64) to 2^(i - 63); the first also everything below, the last
everything above."""
_STATE = "sweep.json"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Instance:
    """One instance and how near its error came to the bound.

    number: its place in the sweep
    ratio:  error / bound of the form it stands for
    logits, change: [actions], exactly as checked
    """

    number: int
    ratio: float
    logits: tuple[float, ...]
    change: tuple[float, ...]

    def size(self) -> tuple[int, float, int]:
        """Actions that are not masked, then the spread of the change: the smaller, the easier to look at."""
        kept = [d for z, d in zip(self.logits, self.change, strict=True) if z > -math.inf]
        return len(kept), max(kept) - min(kept), self.number


@dataclass(frozen=True)
class Tally:
    """What a sweep has found so far, for the first-order and the second-order form.

    chunks:     how many are done
    violations: instances above a bound
    smallest:   the smallest of them, None if there is none
    worst:      by form, the instance with the largest error / bound
    histogram:  by form, counts of error / bound by powers of two (see BINS)
    """

    chunks: int = 0
    violations: int = 0
    smallest: Instance | None = None
    worst: dict[str, Instance] = field(default_factory=dict)
    histogram: dict[str, list[int]] = field(default_factory=lambda: {form: [0] * BINS for form in FORMS})

    def joined(self, later: "Tally") -> "Tally":
        """Both together; `later` is of chunks that come after these."""
        violated = [x for x in (self.smallest, later.smallest) if x is not None]
        worst, histogram = {}, {}
        for form in FORMS:
            candidates = [t.worst[form] for t in (self, later) if form in t.worst]
            worst[form] = max(candidates, key=lambda x: x.ratio)  # the first of equals
            histogram[form] = [a + b for a, b in zip(self.histogram[form], later.histogram[form], strict=True)]
        return Tally(
            chunks=self.chunks + later.chunks,
            violations=self.violations + later.violations,
            smallest=min(violated, key=Instance.size, default=None),
            worst=worst,
            histogram=histogram,
        )


@dataclass(frozen=True)
class Sweep:
    """Result of a sweep: its settings and its `Tally`."""

    instances: int
    actions: int
    seed: int
    engine: str
    found: Tally

    @property
    def holds(self) -> bool:
        """Whether no instance is above a bound."""
        return self.found.violations == 0


def sweep(
    instances: int = INSTANCES,
    actions: int = 10,
    seed: int = 0,
    folder: str | os.PathLike | None = None,
    progress: Progress | None = None,
    engine: str | None = None,
    save_seconds: float = SAVE_SECONDS,
) -> Sweep:
    """Check Lemma 1, first and second order, on random instances.

    Args:
      instances: at least 1; actions: at least 2; seed: at least 0.
      folder: where the state is kept; an interrupted sweep of the same settings goes on from there. None keeps
        nothing.
      progress: called with (done, instances), in instances.
      engine: as for `lemma_1_batch.check_lemma_1`.
      save_seconds: seconds of work that a kill may lose.
    Raises: ValueError for settings out of range, and for a folder that holds something else.
    """
    for name, value, least in (("instances", instances, 1), ("actions", actions, 2), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    config = _config(instances, actions, seed, engine)
    with nullcontext() if folder is None else Run(folder, config):
        path = None if folder is None else Path(folder) / _STATE
        found = _run(config, path, progress, save_seconds)
    return Sweep(instances, actions, seed, config["engine"], found)


def _config(instances: int, actions: int, seed: int, engine: str | None) -> dict[str, Any]:
    """All that the result depends on."""
    module = engine_module(engine)
    return {
        "statement": "Lemma 1",
        "instances": instances,
        "actions": actions,
        "seed": seed,
        "chunk": CHUNK,
        "engine": module.__name__.rpartition(".")[2].removesuffix("_engine"),
        "bounds": list(coefficients(actions, module.additions(actions))),
        "numpy": np.__version__,
    }


def _run(config: Mapping[str, Any], path: Path | None, progress: Progress | None, save_seconds: float) -> Tally:
    """Judge the chunks that are missing, writing the state now and then and at the end."""
    found = Tally() if path is None or not path.exists() else _read(path)
    instances, saved = config["instances"], time.monotonic()
    try:
        while CHUNK * found.chunks < instances:
            rows = min(CHUNK, instances - CHUNK * found.chunks)
            found = found.joined(_judge(found.chunks, rows, config["actions"], config["seed"], config["engine"]))
            if progress is not None:
                progress(min(CHUNK * found.chunks, instances), instances)
            if path is not None and time.monotonic() - saved >= save_seconds:
                _write(path, found)
                saved = time.monotonic()
    finally:
        if path is not None:
            _write(path, found)
    return found


def _judge(chunk: int, rows: int, actions: int, seed: int, engine: str) -> Tally:
    """One chunk, of which the first `rows` instances count."""
    z, d = (x[:rows] for x in draw(seed, chunk, CHUNK, actions))
    checked = check_lemma_1(torch.from_numpy(z), torch.from_numpy(d), engine=engine)
    ratios = {"first": checked.first_ratio().numpy(), "second": checked.second_ratio().numpy()}

    def instance(row: int, ratio: float) -> Instance:
        return Instance(chunk * CHUNK + int(row), float(ratio), tuple(z[row].tolist()), tuple(d[row].tolist()))

    above = np.flatnonzero(~((ratios["first"] <= 1) & (ratios["second"] <= 1)))
    violated = [instance(i, max(r[i] for r in ratios.values())) for i in above]
    return Tally(
        chunks=1,
        violations=len(above),
        smallest=min(violated, key=Instance.size, default=None),
        worst={form: instance(r.argmax(), r.max()) for form, r in ratios.items()},
        histogram={form: _histogram(r) for form, r in ratios.items()},
    )


def _histogram(ratio: np.ndarray) -> list[int]:
    """Counts by powers of two, see BINS."""
    _, exponent = np.frexp(ratio)  # ratio = m 2^exponent with m in [1/2, 1); 0 has exponent 0
    exponent = np.where(ratio == 0, 1 - BINS, exponent)
    return np.bincount(np.clip(exponent + BINS - 2, 0, BINS - 1), minlength=BINS).tolist()


def _plain(value: Any) -> Any:
    """-inf as a string that float() reads; JSON has no infinities."""
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, found: Tally) -> None:
    write_atomic(path, json.dumps(_plain(asdict(found)), allow_nan=False))


def _read(path: Path) -> Tally:
    """The stored tally, bit for bit."""

    def instance(stored: Mapping[str, Any] | None) -> Instance | None:
        if stored is None:
            return None
        numbers = (tuple(float(x) for x in stored[name]) for name in ("logits", "change"))
        return Instance(int(stored["number"]), float(stored["ratio"]), *numbers)

    try:
        stored = json.loads(path.read_text())
        worst = {form: instance(x) for form, x in stored["worst"].items()}
        smallest = instance(stored["smallest"])
        return Tally(stored["chunks"], stored["violations"], smallest, worst, stored["histogram"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is damaged; delete the folder and start the sweep again") from None
