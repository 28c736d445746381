"""What the training loop asks of the networks, so that one loop runs on several engines.

The engine in torch is the reference; every other is tested against it. The loss is `token_loss` in all of them.
"""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from entropy_theory.control import Control, Need
from entropy_theory.records import Batch, Objective
from entropy_theory.softmax import token_statistics
from sims.cartpole_env import Environments, Rollout, collect
from sims.networks import Networks, actor_critic
from sims.ppo import PolicyTerm, Transitions, ValueTerm, adam_step, clip_gradients, ppo_loss


class Outputs(NamedTuple):
    """One forward pass: logits [seeds, states, actions] and value [seeds, states], without grad.

    kept: whatever the engine's backward pass needs.
    """

    logits: Tensor
    value: Tensor
    kept: Any


class Head(NamedTuple):
    """From the networks' logits to those of the policy that acts.

    activate: the control's; temperature: [seeds]; plain: both leave the logits as they are.
    """

    activate: Callable[[Tensor], Tensor]
    temperature: Tensor
    plain: bool

    def policy(self, logits: Tensor) -> Tensor:
        """Logits [seeds, states, actions], activated, then divided by the temperature."""
        return logits if self.plain else self.activate(logits) / self.temperature[..., None, None]


def make_head(control: Control, temperature: Tensor) -> Head:
    """The control's policy head at this temperature [seeds]."""
    return Head(control.activate, temperature, Need.ACTIVATION not in control.needs and bool((temperature == 1).all()))


class Engine(NamedTuple):
    """The costly functions of the loop; everything is batched over seeds and no seed's numbers enter another's.

    collect:   (environments, networks, head, draws [seeds, envs, steps], dtype) -> Rollout
    forward:   (networks, observation [seeds, states, inputs]) -> Outputs
    evaluate:  the same where nothing will be differentiated: keeps nothing
    statistics: (policy's logits [seeds, states, actions], action [seeds, states]) -> (logp, entropy) [seeds, states]
    head_gradient: (head, outputs, minibatch, batch, objective, critic, actor) -> derivatives of the loss by
               (logits, value); records are E = [seeds, rows, steps] with rows * steps the states of the outputs
    knows:     (head, actor) -> whether head_gradient takes these; ask `fitting` for an engine that does
    backward:  (networks, outputs, d_logits, d_value) -> gradients, as `Networks`
    adam:      (networks, gradients, first, second, max_norm, step, lr): clips each seed's gradient, then one step of
               Adam, in place; step counts from 1
    """

    collect: Callable[[Environments, Networks, Head, Tensor, torch.dtype], Rollout]
    forward: Callable[[Networks, Tensor], Outputs]
    evaluate: Callable[[Networks, Tensor], Outputs]
    statistics: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    head_gradient: Callable[
        [Head, Outputs, Transitions, Batch, Objective, ValueTerm, PolicyTerm], tuple[Tensor, Tensor]
    ]
    knows: Callable[[Head, PolicyTerm], bool]
    backward: Callable[[Networks, Outputs, Tensor, Tensor], Networks]
    adam: Callable[[Networks, Networks, Networks, Networks, float, int, float], None]


def _forward(networks: Networks, observation: Tensor) -> Outputs:
    leaves = Networks(*(weight.detach().requires_grad_() for weight in networks))
    with torch.enable_grad():
        graph = actor_critic(leaves, observation)
    return Outputs(*(output.detach() for output in graph), (leaves, graph))


@torch.no_grad()
def _evaluate(networks: Networks, observation: Tensor) -> Outputs:
    return Outputs(*actor_critic(networks, observation), None)


def head_gradient(
    head: Head,
    outputs: Outputs,
    minibatch: Transitions,
    batch: Batch,
    objective: Objective,
    critic: ValueTerm,
    actor: PolicyTerm,
) -> tuple[Tensor, Tensor]:
    """Derivatives of `ppo_loss` by the networks' logits and values, by autograd on these alone."""
    logits, value = (output.detach().requires_grad_() for output in outputs[:2])
    with torch.enable_grad():
        loss = ppo_loss(head.policy(logits), value, minibatch, batch, objective, critic, actor)
    return torch.autograd.grad(loss, (logits, value))


def _backward(networks: Networks, outputs: Outputs, d_logits: Tensor, d_value: Tensor) -> Networks:
    leaves, graph = outputs.kept
    return Networks(*torch.autograd.grad(graph, leaves, (d_logits, d_value)))


def _adam(networks, gradients, first, second, max_norm: float, step: int, lr: float) -> None:
    clip_gradients(gradients, max_norm)
    adam_step(networks, gradients, first, second, step, lr)


TORCH = Engine(
    collect=collect,
    forward=_forward,
    evaluate=_evaluate,
    statistics=token_statistics,
    head_gradient=head_gradient,
    knows=lambda head, actor: True,
    backward=_backward,
    adam=_adam,
)


def fitting(engine: Engine, head: Head, actor: PolicyTerm) -> Engine:
    """The engine, with torch's statistics and head gradient where it does not know these.

    Both come from the same code: |logp - old_logp| of two codes would be a rounding error with a gradient of full size
    on the first update, where there is none.
    """
    if engine.knows(head, actor):
        return engine
    return engine._replace(statistics=TORCH.statistics, head_gradient=TORCH.head_gradient)


class Maker(NamedTuple):
    """How an engine is had.

    package: what must be installed; extra: of this project, that installs it
    make:    () -> the engine
    blocks:  whether a run's seeds are shared out in blocks over processes of one thread each; otherwise all seeds are
             one block, and the threads are torch's
    """

    package: str
    extra: str
    make: Callable[[], Engine]
    blocks: bool


def _numba() -> Engine:
    from sims.numba_engine import ENGINE

    return ENGINE


ENGINES = {
    "torch": Maker("torch", "", lambda: TORCH, False),
    "numba": Maker("numba", "fast", _numba, True),
}
"""Engines by name; the preferred one comes last."""


def resolve_engine(name: str) -> str:
    """The engine meant by a setting: "auto" is the fastest whose package is installed.

    Raises: ValueError if the package of the engine named is not installed.
    """
    installed = [known for known, maker in ENGINES.items() if importlib.util.find_spec(maker.package)]
    if name == "auto":
        return installed[-1]
    if name not in installed:
        maker = ENGINES[name]
        raise ValueError(
            f"engine {name!r} needs the package {maker.package}: pip install 'entropy-theory[{maker.extra}]', "
            "or choose engine 'torch'"
        )
    return name


def load_engine(name: str) -> Engine:
    """The engine of this name, or the one that "auto" stands for. Errors as `resolve_engine`."""
    return ENGINES[resolve_engine(name)].make()
