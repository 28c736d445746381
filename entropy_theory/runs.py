"""Run directories: config.json, versions.json, metrics.jsonl and state.pt, resumable after a kill at any moment.

metrics.jsonl is the truth: one JSON object per recorded step. state.pt holds everything the loop needs to go on
and the length of metrics.jsonl at that moment; lines beyond it belong to a step that was never completed and are
cut off when the run is opened again.
"""

import fcntl
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("entropy-theory", "torch", "numpy", "transformers", "gymnasium", "matplotlib", "scipy")


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def plain(value: Any) -> Any:
    """Tensors as lists and numbers, NaN and infinities as None (JSON has neither)."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def versions() -> dict[str, Any]:
    """What a result depends on besides its config: package versions, machine, number of threads."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {
        **found,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
    }


def _difference(stored: Mapping, wanted: Mapping) -> str:
    for key in [*wanted, *stored]:
        there, here = stored.get(key), wanted.get(key)
        if there != here:
            return f"{key} is {there!r} there and {here!r} here"
    return "the order of its settings differs"


class Run:
    """One open run directory; only one process may hold it."""

    def __init__(self, folder: str | os.PathLike, config: Mapping[str, Any]):
        """Create the directory, or open it to resume the run of exactly this config.

        Raises: ValueError if the folder holds something else, another config, or is held by another process.
        """
        self.folder = Path(folder)
        config = plain(config)
        existing = self.folder / "config.json"
        if existing.exists():
            stored = json.loads(existing.read_text())
            if stored != config:
                raise ValueError(
                    f"{self.folder} holds a run of another configuration: {_difference(stored, config)}; "
                    "choose another --out or delete that folder"
                )
        elif self.folder.is_dir() and any(p.name != "lock" for p in self.folder.iterdir()):
            raise ValueError(f"{self.folder} exists and is not a run directory; choose another --out")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.folder / "lock", "w")  # noqa: SIM115 (held until the process ends)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{self.folder} is in use by another process; wait for it or stop it") from None
        if not existing.exists():
            write_atomic(self.folder / "versions.json", json.dumps(versions(), indent=2))
            write_atomic(existing, json.dumps(config, indent=2))

    def load_state(self) -> dict[str, Any] | None:
        """State of the last recorded step, or None for a new run; cuts metrics of an unfinished step."""
        path = self.folder / "state.pt"
        if not path.exists():
            (self.folder / "metrics.jsonl").write_text("")
            return None
        stored = torch.load(path, map_location="cpu", weights_only=True)
        with open(self.folder / "metrics.jsonl", "r+b") as metrics:
            metrics.truncate(stored["metrics_bytes"])
        return stored["state"]

    def record(self, metrics: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Append one line of metrics, then save the state that goes with it.

        Args:
          metrics: numbers, strings, lists or tensors by name; must hold "step".
          state: tensors, numbers, strings and (nested) dicts, lists and tuples of them.
        """
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(plain(metrics)) + "\n")
            file.flush()
            length = file.tell()
        temporary = self.folder / "state.pt.tmp"
        torch.save({"metrics_bytes": length, "state": dict(state)}, temporary)
        os.replace(temporary, self.folder / "state.pt")

    def close(self) -> None:
        """Let go of the directory."""
        self._lock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def read_metrics(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    with open(Path(folder) / "metrics.jsonl") as file:
        return [json.loads(line) for line in file]
