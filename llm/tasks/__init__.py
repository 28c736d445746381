"""Verifiable tasks by name. A task makes prompts as text and rewards decoded responses."""

from collections.abc import Callable
from typing import NamedTuple

from llm.tasks import tiny


class Task(NamedTuple):
    """What the loop asks of a task.

    make_prompts(count, seed, position): questions with `.text`, `.answer` and `.difficulty`
    reward(prompt, text, finished):      number in [0, 1] for a decoded response
    difficulties:                        the ids that `.difficulty` takes
    """

    make_prompts: Callable[[int, int, int], list[tiny.Prompt]]
    reward: Callable[[tiny.Prompt, str, bool], float]
    difficulties: tuple[int, ...]


TASKS = {"tiny": Task(tiny.make_prompts, tiny.reward, tiny.DIFFICULTIES)}


def get_task(name: str) -> Task:
    """The task called `name`. Raises ValueError if there is none."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; choose from {', '.join(TASKS)}")
    return TASKS[name]
