"""An evaluation on disk: every response, a line of numbers per prompt, and their means with intervals; resumable."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from entropy_theory import controls
from entropy_theory.runs import Run, plain, read_metrics, write_atomic
from entropy_theory.statistics import BAND_RESAMPLES, bootstrap_interval
from llm.at_k import RIGHT
from llm.checkpoints import Checkpoints
from llm.config import TrainConfig
from llm.evaluate import Answered, answer_all, answers, columns
from llm.forward import activation
from llm.memory import use_threads
from llm.models import load_model, memory_errors, resolve_device
from llm.prompts import fitting
from llm.tasks import get_task

Progress = Callable[[int, int, Mapping[str, Any]], None]
"""Called with (prompts done, prompts in all, the last prompt's numbers)."""


def run_config(folder: Path) -> dict[str, Any] | None:
    """The settings of a training run in `folder`, None if there is no such run in it."""
    try:
        stored = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return stored if isinstance(stored, dict) and stored.get("world") == "llm" else None


def trained_model(source: str) -> str:
    """Where the model of `source` lies: the newest checkpoint of a training run, else `source` itself.

    Raises: ValueError for a folder of several runs, or a run without a checkpoint.
    """
    folder = Path(source)
    if seeds := sorted(folder.glob("seed-*/config.json")):
        if len(seeds) > 1:
            raise ValueError(f"{source} holds {len(seeds)} runs; give one of them, for example {seeds[0].parent}")
        folder = seeds[0].parent
    if run_config(folder) is None:
        return source
    steps = Checkpoints(folder).steps()
    if not steps:
        raise ValueError(f"the run in {folder} has no checkpoint yet; train it for a step, or give another model")
    return str(folder / "checkpoints" / f"step_{steps[-1]}")


def run_eval(config: TrainConfig, run: Run, seed: int, progress: Progress) -> dict[str, Any]:
    """Answer the held-out prompts that are not answered yet, and write what came out.

    Writes responses.jsonl (a line per response), metrics.jsonl (a line per prompt) and eval.json.

    Args:
      config: eval_prompts, eval_samples, eval_temperature and what concerns model, task and sampling.
      seed: of prompts and sampling.
    Returns: what eval.json holds.
    Raises: ValueError for a model or task that cannot be used, one without held-out prompts, or too little memory.
    """
    control = controls.build(config.control, config.set)
    lm = load_model(config.model, config.dtype, resolve_device(config.device), config.engine)
    use_threads(lm, config.threads)
    lower = "lower --batch-rows, --max-new-tokens or --token-chunk"
    with closing(get_task(config, training=False)) as task, memory_errors(lower):
        task, _ = fitting(lm, task, config)
        prompts = task.held_out(config.eval_prompts, seed)
        if not prompts:
            raise ValueError(f"task {config.task!r} has no held-out prompts; give a --split")
        state = run.load_state() or {"step": 0, "bytes": 0}
        first = state["step"]
        with open(run.folder / "responses.jsonl", "a+b") as file:
            file.truncate(state["bytes"])
            answered = answer_all(lm, task, config, prompts, seed, activation(control), first=first)
            for i, one in enumerate(answered, start=first):
                file.write("".join(json.dumps(row) + "\n" for row in response_rows(i, one)).encode())
                file.flush()
                line = {name: values[0] for name, values in columns([one]).items()}
                line = {"step": i + 1, "difficulty": one.prompt.difficulty, **line, "failures": one.failures}
                run.record(line, {"step": i + 1, "bytes": file.tell()})
                progress(i + 1, len(prompts), line)
    found = summary(read_metrics(run.folder), task.difficulties)
    write_atomic(run.folder / "eval.json", json.dumps(plain(found), indent=2))
    return found


def response_rows(number: int, one: Answered) -> list[dict[str, Any]]:
    """Lines of responses.jsonl: prompt, the response, its answer, reward, tokens and mean entropy a token, nats."""
    rows = zip(one.text, answers(one), one.reward, one.finished, one.tokens, one.entropy, strict=True)
    return [
        {
            "prompt": number,
            "sample": j,
            "question": one.prompt.text,
            "gold": one.prompt.answer,
            "text": text,
            "answer": answer and answer.removeprefix(RIGHT),
            "reward": reward,
            "finished": finished,
            "tokens": len(tokens),
            "entropy": math.fsum(entropy) / len(entropy),
        }
        for j, (text, answer, reward, finished, tokens, entropy) in enumerate(rows)
    ]


def summary(lines: Sequence[Mapping[str, Any]], difficulties: Sequence[int]) -> dict[str, Any]:
    """Means over prompts with 95 % bootstrap intervals, in all and by difficulty, and counts of failed checks.

    Args: lines: of metrics.jsonl, one per prompt; difficulties: () where there is only one.
    """
    metrics = [name for name in lines[0] if name not in ("step", "difficulty", "failures")]
    failures: dict[str, int] = {}
    for line in lines:
        for kind, count in line["failures"].items():
            failures[kind] = failures.get(kind, 0) + count
    groups = {level: [line for line in lines if line["difficulty"] == level] for level in difficulties}
    return {
        "prompts": len(lines),
        "metrics": {name: _interval(lines, name) for name in metrics},
        "by_difficulty": {
            level: {"prompts": len(group), "pass_at_1": _interval(group, "pass_at_1")}
            for level, group in groups.items()
            if group
        },
        "failures": failures,
    }


def _interval(lines: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    values = [math.nan if line[name] is None else line[name] for line in lines]
    return dict(zip(("mean", "low", "high"), bootstrap_interval(values, resamples=BAND_RESAMPLES), strict=True))
