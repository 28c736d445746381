"""Jobs for the tests of the engines; a module of its own, because workers import it."""

import os
import signal
import time
from pathlib import Path


def leave_a_line(path: Path, text: str, tell) -> None:
    """Append a line."""
    tell(0.5)
    with open(path, "a") as file:
        file.write(text + "\n")


def die_so_often(times: int, path: Path, tell) -> None:
    """Leave a line, and be killed unless that has happened `times` times before."""
    leave_a_line(path, "here", tell)
    if len(path.read_text().splitlines()) <= times:
        os.kill(os.getpid(), signal.SIGKILL)


def fail(message: str, tell) -> None:
    """Fail with a message of two lines."""
    raise RuntimeError(message + "\nand so on")


def sleep(seconds: float, tell) -> None:
    """Take so long."""
    time.sleep(seconds)


def pause() -> None:
    """Wait a little, for something that another process does."""
    time.sleep(0.05)
