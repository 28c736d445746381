"""Names of what the core's tables hold, for configs, which import no torch; tests hold the two equal."""

from typing import Literal

Surrogate = Literal["ppo", "dual_clip", "cispo", "gspo", "sapo", "reinforce"]
"""Of `surrogate.SURROGATES`."""

Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant"]
"""Of `aggregation.AGGREGATIONS`."""

Advantage = Literal["grpo", "rloo", "dr_grpo", "reinforce", "reinforce_baseline", "reinforce++", "reinforce++_baseline"]
"""Of `advantage.ADVANTAGES`."""
