"""What papers print: numbers, formulas and sentences with their place, as plain data for claims to be compared with.

Nothing here was measured by this package. `says` is a paraphrase; `values` holds what a claim can be compared with.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Published(NamedTuple):
    """Something in print.

    paper:  authors, year, arXiv id
    place:  section, table, figure or equation
    says:   the statement in other words
    values: its numbers and terms by name
    """

    paper: str
    place: str
    says: str
    values: Mapping[str, Any]


CUI = "Cui et al. 2025 (arXiv 2505.22617)"

ENTROPY_MECHANISM = {
    "submitted": Published(CUI, "arXiv listing", "version 1 was submitted on 2025-05-28", {"submitted": "2025-05-28"}),
    "law": Published(
        CUI,
        "eq. 6 and figs. 6, 7",
        "R = -a exp(H) + b with a > 0; the axes of figs. 6, 7 and 13 span these coefficients, accuracy as a fraction",
        {"form": "-a exp(H) + b", "a_low": 0.0, "a_high": 0.35, "b_low": 0.1, "b_high": 0.8},
    ),
    "clip_cov": Published(
        CUI,
        "eqs. 10-12",
        "the loss of a random share of the tokens whose score lies in a band is set to 0",
        {"reads": ("logp", "advantage"), "fraction": 2e-4, "low": 1.0, "high": 5.0},
    ),
    "kl_cov": Published(
        CUI,
        "eqs. 13-14",
        "the tokens of largest score get a penalty coef KL(pi_old || pi); the authors' code charges |log ratio|",
        {"divergence": "KL(pi_old || pi)", "tokens": "top fraction by score", "fraction_7b": 2e-3, "coef": 1.0},
    ),
    "no_optimum": Published(
        CUI,
        "section 4.5",
        "which entropy is best is left open; with a control on, no relation between entropy and performance is seen",
        {"optimal_entropy": None},
    ),
    "smoothness": Published(
        CUI,
        "fig. 12",
        "entropy under KL-Cov runs smoother than under Clip-Cov",
        {"smoother": "kl_cov"},
    ),
    "bonus": Published(
        CUI,
        "fig. 9 (Qwen2.5-7B)",
        "an entropy bonus does little at 1e-4 and 1e-3, holds entropy without a gain at 5e-3, explodes at 1e-2",
        {"little": (1e-4, 1e-3), "stable_without_gain": 5e-3, "explodes": 1e-2},
    ),
}
"""The paper under study, apart from its Table 2."""

TABLE_2_BENCHMARKS = ("AIME24", "AIME25", "AMC", "MATH500", "OMNI-MATH", "OlympiadBench", "Minerva")

TABLE_2 = {
    "7B": {
        "GRPO": ((21.2, 9.6, 58.7, 78.8, 27.9, 40.7, 36.7), 38.6),
        "Clip-higher": ((18.1, 11.5, 56.6, 79.2, 29.8, 43.3, 40.4), 38.8),
        "Clip-Cov": ((22.1, 15.8, 58.2, 80.4, 30.5, 44.1, 41.1), 40.4),
        "KL-Cov": ((22.6, 12.9, 61.4, 80.8, 29.1, 42.6, 38.2), 40.6),
    },
    "32B": {
        "GRPO": ((21.8, 16.2, 69.7, 84.2, 35.2, 43.6, 45.5), 45.8),
        "Clip-higher": ((35.6, 22.3, 69.5, 77.2, 35.1, 42.5, 43.0), 47.2),
        "Clip-Cov": ((32.3, 22.7, 67.2, 87.0, 42.0, 57.2, 46.0), 50.3),
        "KL-Cov": ((36.8, 30.8, 74.5, 84.6, 39.1, 49.0, 46.3), 52.2),
    },
}
"""Table 2 of Cui et al. 2025: model size -> method -> (accuracies in TABLE_2_BENCHMARKS' order, printed average), %."""

LP_REG = "Lp-Reg (arXiv 2510.03222)"
SKYWORK = "He et al. 2025, Skywork-OR1 (arXiv 2505.22312)"

OTHER_PAPERS = {
    "lp_reg": Published(
        LP_REG,
        "eqs. 5-6",
        "drop tokens below a threshold as noise, renormalise, and pull low-probability tokens of negative advantage "
        "towards the result by a KL penalty",
        {
            "parts": ("filter noise", "renormalise", "soft target for low-probability tokens"),
            "only": ("advantage < 0", "lowest percentile of sampling probability"),
            "kappa": 0.02,
            "coef": 1.0,
        },
    ),
    "lp_reg_results": Published(
        LP_REG,
        "Table 1 (Qwen3-14B, mean of 5 benchmarks)",
        "GRPO with one update per rollout does as well as KL-Cov",
        {"on_policy_grpo": 57.43, "kl_cov": 57.29, "off_policy_grpo": 51.13, "lp_reg_on_policy": 60.17},
    ),
    "lp_reg_bonus": Published(
        LP_REG,
        "Table 1 (Qwen2.5-32B, mean of 5 benchmarks)",
        "an entropy bonus of coefficient 0.002 halves the accuracy of GRPO",
        {"coef": 0.002, "entropy_bonus": 23.32, "grpo": 48.56},
    ),
    "lp_reg_entropy": Published(
        LP_REG,
        "section 6",
        "entropy is a poor sign of exploration: the top 1 % of tokens by entropy are mostly function and format words",
        {"share": 0.01, "tokens": "function and format words"},
    ),
    "skywork_bonus": Published(
        SKYWORK,
        "runs with a fixed entropy coefficient",
        "a fixed bonus of 1e-4 collapses; 5e-4, 1e-3, 5e-3 and 1e-2 explode in the end",
        {"collapses": (1e-4,), "explodes": (5e-4, 1e-3, 5e-3, 1e-2)},
    ),
    "aer": Published(
        "AER (arXiv 2510.10959)",
        "abstract",
        "an entropy coefficient by difficulty, a target anchored at the initial entropy, a global coefficient adjusted "
        "during training",
        {"parts": ("difficulty-aware coefficient", "initial-anchored target", "dynamic global coefficient")},
    ),
    "entropic": Published(
        "EntroPIC (arXiv 2511.15248)",
        "released code and run script",
        "weight 1 + alpha for rewarded and 1 - alpha for punished tokens of probability above 0.95, "
        "alpha = clip(K_P e + K_I sum e, -1, 1), e = entropy - target",
        {"threshold": 0.95, "proportional": 1.0, "integral": 0.01, "target": 0.1},
    ),
    "egsw": Published(
        "EGSW (arXiv 2503.22456)",
        "weight formula, as quoted by a summary",
        "weight = softmax over the group of (A + alpha H) / P",
        {"form": "softmax((A + alpha H) / P)"},
    ),
    "era": Published(
        "ERA (arXiv 2510.08549)",
        "released code",
        "discrete and continuous activations bound entropy from below; the language-model form rescales logits in the "
        "update only",
        {"forms": ("discrete", "continuous", "language model"), "k": 2.0, "low": 0.45, "high": 3.0, "tau": 4.0},
    ),
    "entropy_aware_init": Published(
        "Entropy-aware initialisation (arXiv 2108.10533)",
        "abstract",
        "low initial entropy raises the chance of failure in tasks with discrete actions; redraw the weights until the "
        "initial policy's entropy is high",
        {"tasks": "discrete actions"},
    ),
}
"""Papers that the notes set beside it."""

CUI_RUNS = {
    "consumption": Published(
        CUI,
        "section 2.3 and fig. 2, means of 11 models",
        "of 2,400 gradient steps the first 200 take 73 % of the entropy and give 76 % of the gain; the first 800 take "
        "94 % of the entropy and give over 93 % of the gain",
        {
            "gradient steps": 2400,
            "models": 11,
            "% of entropy in 200 steps": 73,
            "% of gain in 200 steps": 76,
            "% of entropy in 800 steps": 94,
            "% of gain in 800 steps": 93,
        },
    ),
    "extrapolation": Published(
        CUI,
        "section 2.4 and fig. 5, Qwen2.5 models only",
        "fitted on the first 36 steps, the law predicts the next 200 with these root mean square errors",
        {"steps fitted": 36, "steps predicted": 200, "math": 0.9, "code": 1.2, "math, final": 0.5, "code, final": 1.9},
    ),
    "coefficients": Published(
        CUI,
        "section 2.5, figs. 6 and 7",
        "a and b are the same for GRPO, RLOO, PRIME and REINFORCE++ on Qwen2.5-7B and log-linear in the size of "
        "Qwen2.5 models; both are shown as curves, no coefficient is printed",
        {"algorithms": ("GRPO", "RLOO", "PRIME", "REINFORCE++"), "models per algorithm": 1, "families": 1},
    ),
    "settings of the fits": Published(
        CUI,
        "section 2.2",
        "512 prompts with 8 responses per rollout, batch 256, micro-batch 128, learning rate 5e-7, clip 0.2, no KL",
        {
            "prompts per rollout": 512,
            "responses per prompt": 8,
            "batch": 256,
            "micro-batch": 128,
            "learning rate": 5e-7,
            "clip": 0.2,
            "KL coefficient": 0.0,
        },
    ),
    "settings of the controls": Published(
        CUI,
        "section 4.3",
        "256 prompts with 8 responses per rollout, then 8 updates",
        {"prompts per rollout": 256, "responses per prompt": 8, "updates per rollout": 8},
    ),
    "clip_cov": Published(
        CUI,
        "eqs. 11-12 and section 4.3",
        "a fraction 2e-4 of the tokens, drawn at random among those with a score in [1, 5], loses its gradient; both "
        "bounds are said to be over 500 times the mean",
        {"share": 2e-4, "low": 1.0, "high": 5.0, "drawn": "at random", "becomes 0": "gradient", "times the mean": 500},
    ),
    "kl_cov": Published(
        CUI,
        "eqs. 13-14 and section 4.3",
        "the top share of tokens by score gets a KL penalty towards the rollout policy: 2e-3 at 7B, 2e-4 at 32B",
        {"share at 7B": 2e-3, "share at 32B": 2e-4, "target": "rollout policy", "coefficient": 1.0},
    ),
    "regularisers": Published(
        CUI,
        "section 4.1, figs. 9 and 10 (Qwen2.5-7B)",
        "an entropy loss of 5e-3 holds entropy without beating the baseline; a KL to the reference model holds it and "
        "lowers accuracy",
        {"entropy coefficients": (1e-4, 1e-3, 5e-3, 1e-2), "KL coefficients": (1e-3, 1e-2, 5e-2, 0.1)},
    ),
    "difficulty": Published(
        CUI,
        "fig. 8, right (Qwen2.5-7B)",
        "prompts of lower accuracy have the smaller covariance",
        {"accuracies": (0.125, 0.5, 0.875), "order of covariance": "rising with accuracy"},
    ),
    "entropy": Published(
        CUI,
        "eq. 5",
        "policy entropy is the mean over responses of the mean entropy of their tokens",
        {"entropy of": "the policy", "taken as": "mean over tokens"},
    ),
}
"""What the paper under study reports of its runs."""

TABLE_1 = {2e-4: 5.654, 2e-3: 3.112, 2e-2: 1.385, 0.2: 0.351, 0.5: 0.152, 1.0: 0.003}
"""Table 1 of Cui et al. 2025 (Qwen2.5-7B, step 1): top share of tokens by eq. 10 -> their mean score."""

WANG = "Wang et al. 2025 (arXiv 2506.01939)"

EIGHTY_TWENTY = {
    "results": Published(
        WANG,
        "accuracy of all tokens and of the top 20 % by entropy, mean of 6 benchmarks (Qwen3 base models)",
        "training on the top 20 % of tokens does as well at 8B and better at 14B and 32B; on the bottom 80 % accuracy "
        "declines substantially",
        {"8B": (53.71, 54.23), "14B": (61.40, 64.39), "32B": (66.59, 70.69), "bottom 80 %": "substantial decline"},
    ),
    "models": Published(
        WANG,
        "settings",
        "every run starts from a base model, without supervised fine-tuning",
        {"Qwen3-8B": "base", "Qwen3-14B": "base", "Qwen3-32B": "base"},
    ),
    "forks": Published(
        WANG,
        "tokens of high entropy",
        "words at which the reasoning forks",
        {
            "words": (
                *("wait", "however", "unless", "thus", "also", "since"),
                *("because", "suppose", "assume", "given", "define"),
            )
        },
    ),
    "entropy": Published(
        WANG,
        "eq. 6",
        "the entropy of each token against a threshold over the batch",
        {"entropy of": "a token", "taken as": "threshold per token"},
    ),
}
"""The paper on high-entropy tokens."""
