"""A GRPO step of a small Qwen2 on the CPU: this package beside TRL's GRPOTrainer, the floor, where the time goes.

Equal work: 8 prompts of 8 tokens, 8 responses each of 32 tokens, float32, one optimizer step (Adam, gradient clipped
at norm 1) per rollout, no reference, no probe, nothing saved, a reward that costs nothing (whether a response has
an even number of characters). No response ends early: the end token's id lies beyond the vocabulary. Both decode
their responses, form advantages in groups, and log entropy, clipping, lengths and rewards; ours in every step, TRL in
every tenth, its default. Sizes: `small` (hidden 128, 4 layers, 4 heads of which 2 have keys, MLP 384, 98 words, random
weights) and `tiny` (the shipped model's shape and weights).

The floor is the least arithmetic of matrix products at the speed of a large sgemm on the same threads, the fastest of
all rounds: torch's own, which TRL uses, and the faster one of this package where the processor has AVX-512
(`llm/onednn.py`). With P = 2 layers (d (h + 2 k) w + h w d + 3 d m) operations per token (width d, h heads and k key
heads of width w, MLP m), 4 h w layers per token and token it attends to, and 2 d V per token that is predicted:

  sampling   one forward pass of each prompt, and of each response without its last token
  update     three times (forward, gradient of inputs, of weights) the same

Every contender is a process of its own restricted to the same processors, in turn, several rounds; shown are medians
over rounds of the median step after the first few, and medians of the ratios within a round. Processor time per step is
shown too: other work on the machine moves it less, but two threads that wait for each other burn it.

    make .venv-trl/.installed                  (once: TRL's environment)
    python benchmarks/grpo_step.py             (--threads 1 --sizes small: one table)
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from cartpole_ppo import THREAD_VARIABLES, finish, measure_sgemm, start  # noqa: E402

PEER_PYTHON = HERE.parent / ".venv-trl" / "bin" / "python"
OURS, TRL = "entropy-theory", "TRL GRPOTrainer"
PROMPTS, GROUP, PROMPT_TOKENS, TOKENS = 8, 8, 8, 32
LR = 1e-4
WARM = 3
"""Steps that are not counted."""
WANTED = {"small": 2.0, "tiny": 3.0}
"""Least ratio of our steps per second to TRL's."""


# --- the model ----------------------------------------------------------------------------------------------------


def make_model(folder: Path, size: str) -> None:
    """Write the model and a tokenizer of one token per word, whose end token the model does not know."""
    import torch
    from tokenizers import AddedToken, Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    from llm.models import load_model

    if size == "tiny":
        model = load_model("tiny").model
        model.config.eos_token_id = model.generation_config.eos_token_id = None
    else:
        shape = Qwen2Config(
            vocab_size=98,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            initializer_range=0.05,
            pad_token_id=0,
            eos_token_id=None,
            bos_token_id=None,
        )
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(shape)
    words = ["<pad>", *(f"w{i}" for i in range(1, model.config.vocab_size))]
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    tokenizer.add_tokens([AddedToken(word, lstrip=True, normalized=False) for word in words])
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", padding_side="left", model_max_length=128
    ).save_pretrained(folder)


def flops_per_step(config: dict) -> dict[str, int]:
    """Multiplications and additions of matrix products in one step, as the docstring above counts them."""
    layers, d, h = config["num_hidden_layers"], config["hidden_size"], config["num_attention_heads"]
    kv, w = config["num_key_value_heads"], d // h
    per_token = 2 * layers * (d * (h + 2 * kv) * w + h * w * d + 3 * d * config["intermediate_size"])
    per_pair = 4 * h * w * layers
    head = 2 * d * config["vocab_size"]

    def forward(first: int, last: int) -> int:
        """Tokens number `first` to `last` of a row, read after those before them."""
        pairs = sum(range(first, last + 1))
        return (last - first + 1) * per_token + pairs * per_pair

    rows, end = PROMPTS * GROUP, PROMPT_TOKENS + TOKENS - 1
    once = PROMPTS * forward(1, PROMPT_TOKENS) + rows * forward(PROMPT_TOKENS + 1, end) + rows * TOKENS * head
    return {"sampling": once, "update": 3 * once}


# --- ours, in a process of its own --------------------------------------------------------------------------------


def prompt_text(number: int, words: int) -> str:
    """The words of a prompt, a function of its number."""
    return " ".join(f"w{(7 * number + i * i) % (words - 1) + 1}" for i in range(PROMPT_TOKENS))


def reward(text: str) -> float:
    """Costs nothing, and differs within a group."""
    return float(len(text) % 2 == 0)


@contextmanager
def timed(parts: Counter, places: list[tuple[object, str, str]]):
    """Add up, by part, the seconds spent in functions given as (holder, name, part)."""
    kept = [(holder, name, getattr(holder, name)) for holder, name, _ in places]

    def clocked(function, part):
        def run(*args, **kwargs):
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                parts[part] += time.perf_counter() - begin

        return run

    for (holder, name, function), (_, _, part) in zip(kept, places, strict=True):
        setattr(holder, name, clocked(function, part))
    try:
        yield
    finally:
        for holder, name, function in kept:
            setattr(holder, name, function)


def train_ours(folder: Path, steps: int, threads: int) -> dict:
    """Train; medians over steps of the seconds, and how they divide."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from entropy_theory.runs import Run
    from llm import grpo, rollouts
    from llm.config import TrainConfig
    from llm.models import LanguageModel, set_engine
    from llm.onednn import equip
    from llm.samplers.cached import CachedSampler
    from llm.task import Prompt, Task, no_failures
    from llm.tasks import TASKS, Scores

    def load(source, dtype="float32", device="cpu", engine="auto"):
        model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype)).to(device).eval()
        equip(model)
        set_engine(model, engine)
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
        return LanguageModel(model, tokenizer, 0, (tokenizer.eos_token_id,))

    words = json.loads((folder / "config.json").read_text())["vocab_size"]

    def make_prompts(count: int, seed: int, position: int) -> list[Prompt]:
        return [Prompt(prompt_text(position * count + i, words), 0, 0) for i in range(count)]

    def score(prompts, texts, finished) -> Scores:
        return Scores([reward(text) for text in texts], no_failures())

    TASKS["benchmark"] = Task(make_prompts, lambda count, seed: make_prompts(count, seed, 0), score)
    grpo.load_model = load
    config = TrainConfig(
        model=str(folder),
        task="benchmark",
        rollouts=steps,
        prompts_per_rollout=PROMPTS,
        group_size=GROUP,
        updates_per_rollout=1,
        micro_batch_rows=PROMPTS * GROUP,
        lr=LR,
        max_new_tokens=TOKENS,
        probe_every=0,
        save_every=10**9,
        device="cpu",
        threads=threads,
    )
    parts, clock = Counter(), []
    places = [
        (CachedSampler, "sample", "sampling"),
        (rollouts, "sampling_logp", "statistics"),
        (grpo, "minibatch_statistics", "statistics"),
        (grpo, "accumulate_gradient", "update"),
        (torch.optim.Adam, "step", "update"),
        (torch.optim.AdamW, "step", "update"),
        (torch.nn.utils, "clip_grad_norm_", "update"),
    ]

    def watch(done: int, total: int, line: dict) -> None:
        clock.append((time.perf_counter(), time.process_time(), Counter(parts)))

    with tempfile.TemporaryDirectory() as out, Run(Path(out) / "run", {}) as run, timed(parts, places):
        grpo.train_seed(config, 0, run, watch)
    return summary(clock[:-1])  # the last step saves the run


def summary(clock: list[tuple[float, float, Counter]]) -> dict:
    """Medians over steps from what the clock showed after each."""
    pairs = list(zip(clock[WARM:], clock[WARM + 1 :], strict=False))
    names = sorted(clock[-1][2])
    found = {
        "seconds": median(b[0] - a[0] for a, b in pairs),
        "cpu_seconds": median(b[1] - a[1] for a, b in pairs),
        **{name: median(b[2][name] - a[2][name] for a, b in pairs) for name in names},
    }
    if names:
        found["rest"] = median(b[0] - a[0] - sum(b[2][name] - a[2][name] for name in names) for a, b in pairs)
    return found


# --- the tables ---------------------------------------------------------------------------------------------------


def table(size: str, threads: int, options, folder: Path) -> None:
    """Rounds of both contenders in turn, the floor, and where our time goes."""
    processors = set(sorted(os.sched_getaffinity(0))[:threads])
    itself = [sys.executable, __file__, "--threads", threads, "--steps", options.steps, "--model", folder]
    words = {OURS: [*itself, "--contender", "ours"]}
    if PEER_PYTHON.exists() and not options.alone:
        words[TRL] = [PEER_PYTHON, HERE / "peers" / "trl_grpo.py", folder, threads, options.steps]
    gemms, found = [], {name: [] for name in words}
    for number in range(options.rounds):
        gemms.append(finish(start([*itself, "--contender", "sgemm"], threads, processors)))
        for name in words:
            found[name].append(finish(start(words[name], threads, processors)))
            print(
                f"round {number + 1} of {options.rounds}: {size}, {threads} threads, {name}, "
                f"{found[name][-1]['seconds']:.3f} s, load {os.getloadavg()[0]:.1f}",
                file=sys.stderr,
            )
    report(size, threads, found, gemms, flops_per_step(json.loads((folder / "config.json").read_text())))


def report(size: str, threads: int, found: dict[str, list[dict]], gemms: list[dict], flops: dict[str, int]) -> None:
    """Print one table."""
    own = found[OURS]
    print(
        f"\n{size + f', {threads} threads':26}{'steps/s':>9}{'ms/step':>9}{'CPU ms':>9}{'ours / it':>11}{'by CPU':>8}"
    )
    for name, results in found.items():
        seconds, cpu = (median(x[key] for x in results) for key in ("seconds", "cpu_seconds"))
        ratio, by_cpu = (
            median(its[key] / mine[key] for mine, its in zip(own, results, strict=True))
            for key in ("seconds", "cpu_seconds")
        )
        wanted = f"   wanted {WANTED[size]:.1f}" if name == TRL else ""
        print(f"{name:26}{1 / seconds:9.2f}{1e3 * seconds:9.1f}{1e3 * cpu:9.1f}{ratio:11.2f}{by_cpu:8.2f}{wanted}")
    for whose in gemms[0]:
        gemm = max(gemm[whose] for gemm in gemms)
        floor, mine = sum(flops.values()) / gemm, median(x["seconds"] for x in own)
        print(
            f"floor: {sum(flops.values()) / 1e9:.1f} GFLOP (sampling {flops['sampling'] / 1e9:.1f}) at {whose}'s "
            f"{gemm / 1e9:.0f} GFLOP/s are {1e3 * floor:.1f} ms; ours reaches {100 * floor / mine:.0f} % of it"
        )
    parts = [name for name in own[0] if not name.endswith("seconds")]
    shares = ", ".join(f"{name} {1e3 * median(x[name] for x in own):.1f} ms" for name in parts)
    print(f"ours: {shares}", flush=True)


def main() -> None:
    """The tables, or with --contender one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16, help="optimizer steps of each contender in a round")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="one table each")
    parser.add_argument("--sizes", nargs="+", default=list(WANTED), choices=list(WANTED))
    parser.add_argument("--alone", action="store_true", help="without TRL")
    parser.add_argument("--contender", choices=("ours", "sgemm"), help="measure this one and print one line of JSON")
    parser.add_argument("--model", type=Path, help="directory, for --contender")
    options = parser.parse_args()
    if options.contender == "sgemm":
        from llm.onednn import matmul

        threads = options.threads[0]
        print(json.dumps({"torch": measure_sgemm(threads), "oneDNN": measure_sgemm(threads, product=matmul)}))
    elif options.contender == "ours":
        print(json.dumps(train_ours(options.model, options.steps, options.threads[0])))
    else:
        if not PEER_PYTHON.exists():
            print(f"left out: {TRL}, for want of {PEER_PYTHON}; make it with: make .venv-trl/.installed")
        print(f"load {os.getloadavg()[0]:.1f}; {', '.join(THREAD_VARIABLES)} = the threads of each table")
        with tempfile.TemporaryDirectory() as folder:
            for size in options.sizes:
                make_model(Path(folder) / size, size)
                for threads in options.threads:
                    table(size, threads, options, Path(folder) / size)


if __name__ == "__main__":
    main()
