"""Settings of the bandit world. Imports no torch, so that --help is instant."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from entropy_theory.names import Advantage, Aggregation, Surrogate
from entropy_theory.ranges import require_at_least, require_choice, require_positive

FAMILIES = ("random", "rare_good_arm", "deceptive", "contextual", "tree")
GIVEN_PRIOR = ("rare_good_arm", "deceptive")
"""Families whose initial policy is prescribed, so that no features can be chosen freely."""
ADVANTAGES = (*get_args(Advantage), "reward")
SURROGATES = get_args(Surrogate)
AGGREGATIONS = get_args(Aggregation)
MOST_CELLS = 100_000
"""Pairs of state and arm of one bandit at most: everything is computed by going through all of them."""


@dataclass(frozen=True)
class BanditConfig:
    """Softmax policies on bandits, from K arms to a tree of tokens, all seeds and problems at once."""

    family: Literal["random", "rare_good_arm", "deceptive", "contextual", "tree"] = "random"
    """Kind of bandit: K random arms; one good arm that is rare at first; a likely decent arm beside a rare better one;
    many contexts; sequences of tokens that end with arm 0 or at `depth` (docs/bandits.md)."""
    control: str = "none"
    """Entropy control, or several joined by +, applied from left to right (`entropy-theory controls` lists them)."""
    set: dict[str, float | str] = field(default_factory=dict)
    """A control's own parameter as NAME.parameter=value, for example kl_cov.fraction=0.02; repeatable."""
    seeds: int = 20
    """Independent repetitions, trained together."""
    problems: int = 8
    """Bandits per seed; metrics are means over them. Problem p has the same arms in every seed."""
    own_problems: bool = False
    """Give each seed problems of its own, so that seeds differ by their bandits too, not by their pulls alone."""
    arms: int = 10
    """Actions K."""
    states: int = 8
    """Contexts of the contextual family, all equally frequent."""
    depth: int = 3
    """Longest sequence of the tree family, tokens."""
    features: int = 0
    """0: a logit of its own for each state and arm. Else the dimension of features shared by all of them."""
    init_entropy: float = 0.0
    """Entropy-aware initialisation: draw the initial logits of a bandit again until the mean entropy of its policy is
    this share of ln(arms); 0 takes the first draw."""
    init_tries: int = 10
    """Draws of the initial logits at most; where none reaches `init_entropy`, that of the highest entropy is taken."""
    prior_scale: float = 1.0
    """Standard deviation of the initial logits, nats (0 starts uniform); where the family prescribes the likely arms,
    of the other arms' logits."""
    rare_probability: float = 0.03
    """Initial probability of the best arm in the families rare_good_arm and deceptive."""
    gradient: Literal["sampled", "exact"] = "sampled"
    """Policy gradient from sampled pulls, or exactly by summing over all arms (all sequences of a tree)."""
    natural: bool = False
    """Multiply the gradient by the pseudo-inverse of the Fisher matrix."""
    advantage: Literal[Advantage, "reward"] = "grpo"
    """Advantage of a sampled pull, over the pulls of one context or of all contexts in one rollout; `reward` is reward
    minus `baseline`. Exact gradients subtract the mean that each of them tends to, and divide by no deviation."""
    baseline: float = 0.0
    """What `advantage = reward` subtracts: at 0 no advantage is negative, at 1 none is positive."""
    samples: int = 64
    """Pulls (sequences) per bandit and rollout, or per context where there are several."""
    groups: int = 0
    """Contexts drawn for a rollout of the contextual family, each with `samples` pulls; 0 takes every context once."""
    updates_per_rollout: int = 4
    """Gradient steps on one rollout. With 1 every ratio is 1, and some controls change nothing."""
    rollouts: int = 200
    """Rollouts in the run."""
    step_size: float = 0.5
    """Gradient step eta on the logits (or on the weights of the features), nats per advantage unit."""
    surrogate: Surrogate = "ppo"
    """What is maximised for a token, as a function of its ratio."""
    aggregation: Aggregation = "token-mean"
    """How the tokens' losses become one number; all are the same where an episode is one token. `constant` divides
    by the number of sequences times `depth`."""
    clip_low: float = 0.2
    """Distance of PPO's lower clip from ratio 1."""
    clip_high: float = 0.2
    """Distance of PPO's upper clip from ratio 1."""
    measure_every: int = 1
    """Rollouts between measurements of the theory; 0 measures nothing. Only a recorded rollout is measured.
    Measuring every one takes 57 % of a default run's time, every tenth (with record_every) 20 %."""
    record_every: int = 1
    """Rollouts between lines of metrics and saved states (the last is always recorded); a kill loses at most these."""
    seed: int = 0
    """First seed; seed i of the run draws the same numbers whatever the number of seeds."""
    threads: int = 1
    """CPU threads."""

    def __post_init__(self):
        require_at_least(self, 1, "seeds", "problems", "samples", "rollouts", "threads", "states", "depth")
        require_at_least(self, 1, "record_every", "updates_per_rollout", "init_tries")
        require_at_least(self, 2, "arms")
        require_at_least(self, 0, "prior_scale", "features", "groups", "measure_every")
        require_positive(self, "step_size", "clip_low", "clip_high")
        require_choice(self, "family", FAMILIES)
        require_choice(self, "gradient", ("sampled", "exact"))
        require_choice(self, "advantage", ADVANTAGES)
        require_choice(self, "surrogate", SURROGATES)
        require_choice(self, "aggregation", AGGREGATIONS)
        if not 0 < self.rare_probability < 1:
            raise ValueError(f"rare_probability must lie between 0 and 1, got {self.rare_probability}")
        if not math.isfinite(self.baseline):
            raise ValueError(f"baseline must be finite, got {self.baseline}")
        if not 0 <= self.init_entropy < 1:
            raise ValueError(f"init_entropy must be a share of ln(arms) in [0, 1), got {self.init_entropy}")
        if self.gradient == "exact" and self.horizon > 1 and self.aggregation != "token-mean":
            raise ValueError(
                f"aggregation {self.aggregation} averages over sampled sequences, which the exact gradient of a tree "
                "does not have; choose token-mean or gradient sampled"
            )
        if self.family in GIVEN_PRIOR:
            if self.arms < 3:
                raise ValueError(f"family {self.family} needs arms of at least 3, got {self.arms}")
            if self.features:
                raise ValueError(
                    f"family {self.family} prescribes each arm's probability; set features to 0, got {self.features}"
                )
            if self.init_entropy:
                raise ValueError(
                    f"family {self.family} prescribes each arm's probability, so nothing can be drawn again; "
                    f"set init_entropy to 0, got {self.init_entropy}"
                )
        if self.cells > MOST_CELLS:
            raise ValueError(
                f"this bandit has {self.cells} pairs of state and arm, more than {MOST_CELLS}; "
                "lower arms, states or depth"
            )

    @property
    def state_count(self) -> int:
        """States of one bandit: 1, the contexts, or the inner nodes of the tree."""
        if self.family == "tree":
            return sum((self.arms - 1) ** level for level in range(self.depth))
        return self.states if self.family == "contextual" else 1

    @property
    def horizon(self) -> int:
        """Tokens of an episode at most."""
        return self.depth if self.family == "tree" else 1

    @property
    def cells(self) -> int:
        """Pairs of state and arm of one bandit."""
        return self.state_count * self.arms

    @property
    def drawn_contexts(self) -> int:
        """Contexts drawn for a rollout; 0 where every first state is taken once."""
        return self.groups if self.family == "contextual" else 0

    @property
    def contexts(self) -> int:
        """Groups of pulls in a sampled rollout."""
        return self.drawn_contexts or (self.states if self.family == "contextual" else 1)

    @property
    def tokens(self) -> int:
        """Tokens of a rollout at most, sampled or enumerated."""
        if self.gradient == "exact":
            return self.cells * self.horizon
        return self.contexts * self.samples * self.horizon
