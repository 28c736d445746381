"""Statistics of response tokens under a policy: one forward pass of training."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from entropy_theory.control import Control, Need
from llm.models import LanguageModel
from llm.packing import can_pack, pack, read
from llm.responses import Responses, at_tokens, left_aligned
from llm.token_stats import LogitMap, policy_logits, token_stats

Activation = LogitMap


def identity(logits: Tensor) -> Tensor:
    """The activation of controls that have none."""
    return logits


def activation(control: Control) -> Activation:
    """What a control makes of the logits; `identity` for one that leaves them alone."""
    return control.activate if Need.ACTIVATION in control.needs else identity


class Reading(NamedTuple):
    """What is to be read of the logits at each token.

    temperature: that of the rollout, so that logp equals what sampling used
    activate:    logits -> logits, before the temperature; None for none
    support:     whose entropy a bonus raises: logits -> logits, -inf where left out; None for the whole policy
    proxy:       the filtered policy: logits -> logits, -inf where filtered out; None unless asked for
    collision:   whether Cov_pi(log pi, pi) is asked for
    scaled:      whether an objective's logit_scale acts
    chunk:       most tokens whose logits are held at once; None chooses by the size of the vocabulary
    """

    temperature: float = 1.0
    activate: LogitMap | None = None
    support: LogitMap | None = None
    proxy: LogitMap | None = None
    collision: bool = False
    scaled: bool = False
    chunk: int | None = None

    @classmethod
    def of(
        cls,
        control: Control,
        temperature: float,
        *,
        proxy: bool = False,
        collision: bool = False,
        chunk: int | None = None,
    ) -> Reading:
        """What `control` makes of the logits; with `proxy` also its filtered policy, where it has one."""
        needs = control.needs
        return cls(
            temperature,
            control.activate if Need.ACTIVATION in needs else None,
            control.entropy_support if Need.ENTROPY_SUPPORT in needs else None,
            control.proxy if proxy and Need.PROXY_LOGP in needs else None,
            collision,
            Need.LOGIT_SCALE in needs,
            chunk,
        )


class TokenStatistics(NamedTuple):
    """Statistics of the policy at response tokens, [rows, tokens], nats, 0 where masked; see `TokenStats`.

    logp, entropy, raised: with grad where it is enabled
    collision, proxy_logp: without grad; None unless asked for
    """

    logp: Tensor
    entropy: Tensor
    raised: Tensor
    collision: Tensor | None
    proxy_logp: Tensor | None


PLAIN = Reading()


def forward(
    lm: LanguageModel, responses: Responses, reading: Reading = PLAIN, logit_scale: Tensor | None = None
) -> TokenStatistics:
    """Log-probability, exact entropy and what else `reading` asks for, of every response token.

    The vocabulary is unrolled at valid response tokens only, and never for more than `reading.chunk` of them.

    Args: logit_scale: [rows, tokens] or None for 1.
    """
    mask = responses.mask
    head = lm.model.get_output_embeddings()
    found = token_stats(
        last_hidden(lm, responses),
        head.weight,
        responses.tokens[mask],
        reading.temperature,
        bias=head.bias,
        logit_scale=None if logit_scale is None else logit_scale[mask],
        activate=reading.activate,
        support=reading.support,
        proxy=reading.proxy,
        collision=reading.collision,
        chunk=reading.chunk,
    )
    return TokenStatistics(*(None if column is None else at_tokens(column, mask) for column in found))


def last_hidden(lm: LanguageModel, responses: Responses) -> Tensor:
    """Hidden states that predict the valid response tokens, [valid tokens, d], in the order of `mask.nonzero()`.

    Where packing is known, padding is not read, and a prompt that rows next to each other share is read once.
    """
    decoder = lm.model.get_decoder()
    if can_pack(decoder, responses.mask.device):
        return read(decoder, pack(responses))
    hidden = decoder(input_ids=left_aligned(responses), use_cache=False).last_hidden_state
    rows, steps = responses.mask.nonzero(as_tuple=True)
    return hidden[rows, responses.prompt_length[rows] - 1 + steps]


def token_logits(
    lm: LanguageModel,
    responses: Responses,
    temperature: float = 1.0,
    activate: LogitMap | None = None,
    tokens: Tensor | slice | None = None,
) -> Tensor:
    """Logits of the policy at valid response tokens, [valid tokens, vocabulary], in the order of `mask.nonzero()`.

    They take 4 bytes times the vocabulary a token, for many tokens more memory than the model: `forward` does without.

    Args: tokens: which of the valid ones; None for all.
    """
    hidden = last_hidden(lm, responses)
    hidden = hidden if tokens is None else hidden[tokens]
    return policy_logits(lm.model.get_output_embeddings()(hidden), temperature, activate)
