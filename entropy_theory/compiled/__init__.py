"""What compiled code of several packages is made of: a tile of a matrix product, tanh and exp. Needs Numba."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def forget_outdated(kernels: Iterable[Any], folder: Path) -> None:
    """Delete kept code of `kernels` that is older than any source in `folder` or here.

    Numba itself looks only at the file of the function it kept, not at those of the functions called in it.
    """
    sources = [*folder.glob("*.py"), *Path(__file__).parent.glob("*.py")]
    newest = max(file.stat().st_mtime for file in sources)
    for kernel in kernels:
        for index in Path(kernel.stats.cache_path).glob(f"*.{kernel.__name__}-*.nbi"):
            if index.stat().st_mtime < newest:
                index.unlink(missing_ok=True)


_said: set[str] = set()


def announce(kernels: Iterable[Any], what: str) -> None:
    """Say on stderr, once in a process, that `what` will be compiled, unless kept code of all kernels is there."""
    if what not in _said and not all(any(Path(k.stats.cache_path).glob(f"*.{k.__name__}-*.nbi")) for k in kernels):
        _said.add(what)
        print(f"compiling {what}, once on this machine: about half a minute", file=sys.stderr, flush=True)
