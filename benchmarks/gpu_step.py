"""A GRPO step at the shape of Qwen2.5-0.5B, random weights, on a GPU: ours beside TRL, and what statistics cost.

16 prompts of 8 tokens, 8 responses each of 512 tokens that never end early, one optimizer step per rollout, kl_cov as
the control, no probe, nothing saved. Both in the same type, with the same rows per backward pass and without gradient
checkpointing; TRL samples with transformers' generate. Every contender is a process of its own; shown is the median
step after the first two.

Where our time goes: sampling, reading (the forward passes), update (backward and optimizer), and statistics and
controls: the control's edit and `advance`, and everything that is measured about the minibatch, with the device waited
for at each end. What exact entropy adds to the log-probabilities is in `benchmarks/token_stats.py`.

Not measured on a GPU where it was written. `--device cpu --small` runs it on a toy.

    python benchmarks/gpu_step.py [--json FILE]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
PEER_PYTHON = HERE.parent / ".venv-trl" / "bin" / "python"
WARM = 2
SHAPE = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
BIG = SHAPE | {"num_key_value_heads": 2, "vocab_size": 151_936}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL = SMALL | {"num_key_value_heads": 1, "vocab_size": 300}


def make_model(folder: Path, shape: dict) -> None:
    """Write a model of random weights and a tokenizer of one token per word, whose end token it does not know."""
    import torch
    from tokenizers import AddedToken, Tokenizer, models
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    more = {"max_position_embeddings": 1024, "tie_word_embeddings": True, "pad_token_id": 0}
    Qwen2ForCausalLM(Qwen2Config(**shape, **more, eos_token_id=None, bos_token_id=None)).save_pretrained(folder)
    words = {"<pad>": 0} | {f"w{i}": i for i in range(1, shape["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens([AddedToken("<end>")])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", padding_side="left", model_max_length=1024
    )
    fast.save_pretrained(folder)


def prompt_text(number: int, words: int) -> str:
    """Eight words, a function of the number."""
    return " ".join(f"w{(7 * number + i * i) % (words - 1) + 1}" for i in range(8))


def reward(text: str) -> float:
    """Costs nothing, and differs within a group."""
    return float(len(text) % 2 == 0)


def summary(clock: list[tuple[float, Counter]]) -> dict[str, float]:
    """Medians over steps of seconds, in all and by part."""
    pairs = list(zip(clock[WARM - 1 :], clock[WARM:], strict=False))
    names = sorted(clock[-1][1])
    return {"seconds": median(b[0] - a[0] for a, b in pairs)} | {
        name: median(b[1][name] - a[1][name] for a, b in pairs) for name in names
    }


# --- ours ---------------------------------------------------------------------------------------------------------


@contextmanager
def timed(parts: Counter, places: list[tuple[object, str, str]], now):
    """Add up, by part, the seconds in functions given as (holder, name, part), once for nested ones."""
    kept = [(holder, name, getattr(holder, name)) for holder, name, _ in places if hasattr(holder, name)]
    part_of = {(id(holder), name): part for holder, name, part in places}
    inside = []

    def clocked(function, part):
        def run(*args, **kwargs):
            if inside:
                return function(*args, **kwargs)
            inside.append(part)
            begin = now()
            try:
                return function(*args, **kwargs)
            finally:
                inside.pop()
                parts[part] += now() - begin

        return run

    for holder, name, function in kept:
        setattr(holder, name, clocked(function, part_of[id(holder), name]))
    try:
        yield lambda function, part: clocked(function, part)
    finally:
        for holder, name, function in kept:
            setattr(holder, name, function)


def train_ours(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Medians of our steps."""
    import torch

    from entropy_theory.runs import Run
    from llm import grpo, measure, rollouts
    from llm.config import TrainConfig
    from llm.models import LanguageModel
    from llm.samplers.cached import CachedSampler
    from llm.task import Prompt, Task, no_failures
    from llm.tasks import TASKS, Scores

    def now() -> float:
        if options.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def load(source, dtype="float32", device="cpu", engine="auto"):
        from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

        model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype)).to(device).eval()
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source, padding_side="left")
        return LanguageModel(model, tokenizer, 0, (tokenizer.eos_token_id,))

    words = json.loads((folder / "config.json").read_text())["vocab_size"]

    def make_prompts(count: int, seed: int, position: int) -> list:
        return [Prompt(prompt_text(position * count + i, words), 0, 0) for i in range(count)]

    TASKS["benchmark"] = Task(
        make_prompts,
        lambda count, seed: make_prompts(count, seed, 0),
        lambda prompts, texts, finished: Scores([reward(text) for text in texts], no_failures()),
    )
    config = TrainConfig(
        model=str(folder),
        task="benchmark",
        control="kl_cov",
        rollouts=options.steps,
        prompts_per_rollout=options.prompts,
        group_size=8,
        updates_per_rollout=1,
        micro_batch_rows=options.micro_batch_rows,
        max_new_tokens=options.tokens,
        lr=1e-6,
        probe_every=0,
        save_every=10**9,
        dtype=options.dtype,
        device=options.device,
        threads=options.threads,
    )
    statistics = (
        "clip_fractions",
        "theorem_predictions",
        "token_covariance",
        "selection",
        "reference_kl",
        "token_mean",
    )
    places = [
        (CachedSampler, "sample", "sampling"),
        (rollouts, "sampling_logp", "reading"),
        (grpo, "minibatch_statistics", "reading"),
        (grpo, "accumulate_gradient", "update"),
        (torch.optim.Adam, "step", "update"),
        (torch.optim.AdamW, "step", "update"),
        (torch.nn.utils, "clip_grad_norm_", "update"),
        *((grpo, name, "statistics and control") for name in statistics),
        *((measure, name, "statistics and control") for name in ("rollout_metrics", "group_metrics")),
    ]
    parts, clock, build = Counter(), [], grpo.build_control
    kept = grpo.load_model
    with tempfile.TemporaryDirectory() as out, Run(Path(out) / "run", {}) as run, timed(parts, places, now) as clocked:

        def watched(*args):
            control = build(*args)
            edit, advance = (clocked(f, "statistics and control") for f in (control.edit, control.advance))
            return control._replace(edit=edit, advance=advance)

        grpo.build_control, grpo.load_model = watched, load
        try:
            grpo.train_seed(config, 0, run, lambda *_: clock.append((now(), Counter(parts))))
        finally:
            grpo.build_control, grpo.load_model = build, kept
    return summary(clock[:-1])  # the last step saves the run


# --- TRL, with the interpreter of its environment ------------------------------------------------------------------


def train_trl(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Medians of TRL's steps."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, options.dtype))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, padding_side="left")
    clock: list[tuple[float, Counter]] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            if options.device == "cuda":
                torch.cuda.synchronize()
            clock.append((time.perf_counter(), Counter()))

    rows = options.prompts * 8
    texts = [prompt_text(i, model.config.vocab_size) for i in range(options.prompts * options.steps)]
    with tempfile.TemporaryDirectory() as out:
        config = GRPOConfig(
            output_dir=out,
            per_device_train_batch_size=min(rows, options.micro_batch_rows),
            gradient_accumulation_steps=max(1, rows // options.micro_batch_rows),
            num_generations=8,
            num_iterations=1,
            max_completion_length=options.tokens,
            max_steps=options.steps,
            beta=0.0,
            temperature=1.0,
            learning_rate=1e-6,
            bf16=options.dtype == "bfloat16" and options.device == "cuda",
            use_cpu=options.device == "cpu",
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **kwargs: [reward(text) for text in completions],
            args=config,
            train_dataset=Dataset.from_dict({"prompt": texts}),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    return summary(clock)


# --- the table ----------------------------------------------------------------------------------------------------

CONTENDERS = {"ours": train_ours, "trl": train_trl}


def measure_contender(name: str, folder: Path, options: argparse.Namespace) -> dict:
    """One contender in a process of its own; `missing` says why there is nothing."""
    python = str(PEER_PYTHON) if name == "trl" and PEER_PYTHON.exists() else sys.executable
    words = [python, __file__, "--contender", name, "--folder", str(folder)]
    for key in ("device", "dtype", "prompts", "tokens", "steps", "micro_batch_rows", "threads"):
        words += [f"--{key.replace('_', '-')}", str(getattr(options, key))]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=options.longest)
    except subprocess.TimeoutExpired:
        return {"missing": f"took more than {options.longest} s"}
    if done.returncode:
        return {"missing": (done.stderr.strip().splitlines() or ["no output"])[-1][:300]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> int:
    """The table, or with --contender one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--micro-batch-rows", type=int, default=32)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--small", action="store_true", help="a toy: whether it runs at all")
    parser.add_argument("--alone", action="store_true", help="without TRL")
    parser.add_argument("--longest", type=int, default=180, help="seconds after which a contender is given up")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--contender", choices=CONTENDERS, help="measure this one and print one line of JSON")
    parser.add_argument("--folder", type=Path, help="the model, for --contender")
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(CONTENDERS[options.contender](options.folder, options)))
        return 0
    if options.small:
        options.prompts, options.tokens, options.micro_batch_rows, options.dtype = 2, 8, 8, "float32"
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), SMALL if options.small else BIG)
        names = ["ours"] if options.alone else list(CONTENDERS)
        found = {name: measure_contender(name, Path(folder), options) for name in names}
    for name, line in found.items():
        shown = line.items() if "missing" in line else ((key, f"{value:.4f} s") for key, value in line.items())
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in shown))
    if "seconds" in found["ours"]:
        share = found["ours"].get("statistics and control", 0.0) / found["ours"]["seconds"]
        found["ours"]["share_of_statistics_and_control"] = share
        print(f"statistics and control take {share:.2%} of a step (wanted: 3 %)")
        if "seconds" in found.get("trl", {}):
            print(f"TRL / ours: {found['trl']['seconds'] / found['ours']['seconds']:.2f} (wanted: 1.5)")
    if options.json:
        options.json.write_text(json.dumps(found))
    return 0 if "seconds" in found["ours"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
