"""The golden batches: fixed inputs with their exact outputs in float64, read from the package's data."""

import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

FORMAT_VERSION = 1

INPUTS = ("logits", "action", "logp", "old_logp", "advantage", "mask", "reward", "group")
"""Arrays of a batch that a trainer is given; the others are what it must compute."""


@dataclass(frozen=True)
class GoldenBatch:
    """One fixed minibatch and everything exact about it.

    name, purpose: what it is called and what it catches
    hyper:         parameters of each loss, by the loss's name
    micro_batches: [first row, last row + 1] of each micro-batch; one that spans all rows where the split is no matter
    arrays:        inputs (`INPUTS`) and exact outputs; shapes and units in the index
    """

    name: str
    purpose: str
    hyper: Mapping[str, Mapping[str, float]]
    micro_batches: tuple[tuple[int, int], ...]
    arrays: Mapping[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    @property
    def tokens(self) -> int:
        """Number of valid tokens."""
        return int(self.arrays["mask"].sum())


def index() -> dict[str, Any]:
    """The index as it lies in the package: format version, units, and one entry for each batch."""
    return json.loads(_read("index.json"))


def batches(*names: str) -> list[GoldenBatch]:
    """The golden batches of these names, all of them if none is given.

    Raises: ValueError for an unknown name and for data that is not what the index describes.
    """
    known = {entry["name"]: entry for entry in _entries()}
    for name in names:
        if name not in known:
            raise ValueError(f"there is no golden batch {name!r}; the batches are {', '.join(known)}")
    return [_load(name) for name in names or known]


def listing() -> str:
    """One line for each batch: name, shape, valid tokens, micro-batches, purpose."""
    lines = [f"{'batch':<16}{'rows x steps x vocabulary':<27}{'tokens':<8}{'micro-batches':<15}purpose"]
    for e in _entries():
        shape = f"{e['rows']} x {e['steps']} x {e['vocabulary']}"
        lines.append(f"{e['name']:<16}{shape:<27}{e['valid_tokens']:<8}{len(e['micro_batches']):<15}{e['purpose']}")
    return "\n".join(lines)


def export(folder: str | Path) -> list[Path]:
    """Write every batch as .npz and as .json, and the index, into `folder`, for other languages and environments.

    The .json files hold the same numbers, each with the digits that give back its float64; "-inf" is a string.

    Raises: ValueError if `folder` is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is a file; name a folder to write the golden batches to")
    folder.mkdir(parents=True, exist_ok=True)
    written = {"index.json": _read("index.json")}
    for entry in _entries():
        written[entry["file"]] = _read(entry["file"])
        arrays = {name: _plain(array.tolist()) for name, array in _load(entry["name"]).arrays.items()}
        written[f"{entry['name']}.json"] = json.dumps(arrays, allow_nan=False).encode()
    for name, data in written.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in written]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _read(name: str) -> bytes:
    return (resources.files("entropy_theory.conformance") / "data" / name).read_bytes()


def _entries() -> list[dict[str, Any]]:
    found = index()
    if found["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"the golden batches have format {found['format_version']}, this code reads {FORMAT_VERSION}; "
            "install entropy-theory again"
        )
    return found["batches"]


@cache
def _load(name: str) -> GoldenBatch:
    entry = next(e for e in _entries() if e["name"] == name)
    data = _read(entry["file"])
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise ValueError(f"{entry['file']} is not the file its index describes; install entropy-theory again")
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in stored.files}
    for array in arrays.values():
        array.flags.writeable = False
    micro_batches = tuple((first, last) for first, last in entry["micro_batches"])
    return GoldenBatch(name, entry["purpose"], entry["hyper"], micro_batches, arrays)
