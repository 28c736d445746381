"""Batched networks, PPO's loss and gradients, clipping, Adam: each seed's own."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from cartpole_runs import DOUBLE, loss_and_gradients, stale

from sims import cartpole, networks, ppo
from sims.learner import Learner


def alone(learner: Learner, seed: int) -> dict[str, torch.nn.Sequential]:
    """Actor and critic of one seed, as torch modules."""
    found = {}
    for net, name in enumerate(("actor", "critic")):
        stacked = [w[net, seed] for w in learner.networks[:4]]
        stacked += [getattr(learner.networks, f"{name}_{part}")[seed] for part in ("weight", "bias")]
        layers = []
        for weight, bias in zip(stacked[::2], stacked[1::2], strict=True):
            layer = torch.nn.Linear(*weight.shape, dtype=weight.dtype)
            with torch.no_grad():
                layer.weight.copy_(weight.mT)
                layer.bias.copy_(bias[0])
            layers += [layer, torch.nn.Tanh()]
        found[name] = torch.nn.Sequential(*layers[:-1])
    return found


def test_batched_networks_are_each_seeds_own():
    """Values and PPO gradients of seed i from torch modules of that seed alone."""
    learner, transitions = stale(DOUBLE)
    logits, value = networks.actor_critic(learner.networks, transitions.states)
    _, gradients = loss_and_gradients(learner, transitions)
    found = networks.Networks(*gradients)
    for seed in range(DOUBLE.seeds):
        modules = alone(learner, seed)
        x, mask = transitions.states[seed], transitions.mask[seed, :, 0]
        z, v = modules["actor"](x), modules["critic"](x).squeeze(-1)
        torch.testing.assert_close(logits[seed], z, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(value[seed], v, rtol=1e-12, atol=1e-14)
        logp = z.log_softmax(-1)[torch.arange(len(x)), transitions.action[seed, :, 0]]
        ratio = (logp - transitions.old_logp[seed, :, 0]).exp()
        a = transitions.advantage[seed, :, 0]
        surrogate = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
        squared = (v - transitions.value_target[seed, :, 0]) ** 2
        loss = (-surrogate + DOUBLE.value_coef * squared / 2)[mask].mean()
        for net, name in enumerate(("actor", "critic")):
            expected = torch.autograd.grad(loss, modules[name].parameters(), retain_graph=True)
            mine = [g[net, seed] for g in found[:4]]
            mine += [getattr(found, f"{name}_{part}")[seed] for part in ("weight", "bias")]
            for got, want in zip(mine, expected, strict=True):
                want = want.mT if want.dim() == 2 else want.unsqueeze(0)
                # 128 transitions: sums of 128 terms with about 128 roundings each
                torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12 * want.abs().max().item())


def test_masked_transitions_do_not_touch_loss_or_gradient():
    learner, transitions = stale(DOUBLE)
    mask = torch.rand(transitions.mask.shape, generator=torch.manual_seed(0)) < 0.8
    transitions = transitions._replace(mask=mask)
    poisoned = transitions._replace(
        **{
            name: torch.where(mask, getattr(transitions, name), value)
            for name, value in (("old_logp", math.nan), ("advantage", 1e6), ("value_target", math.inf), ("action", 0))
        },
        observation=torch.where(mask.unsqueeze(-1), transitions.observation, 7.0),
    )
    for name in ("none", "clip_cov", "kl_cov", "entropy_bonus"):
        clean, expected = loss_and_gradients(learner, transitions, name=name)
        dirty, found = loss_and_gradients(learner, poisoned, name=name)
        assert clean == dirty
        assert all(torch.equal(x, y) for x, y in zip(expected, found, strict=True)), name


def test_numpy_actor_is_the_torch_actor():
    learner, transitions = stale(DOUBLE)
    found = networks.actor_numpy(learner.networks)(transitions.states.numpy())
    expected = networks.actor(learner.networks, transitions.states)
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-12, atol=1e-14)


def test_weights_of_a_seed_do_not_depend_on_the_others():
    many = cartpole.make_learner(DOUBLE).networks
    one = cartpole.make_learner(dataclasses.replace(DOUBLE, seeds=1, seed=2)).networks
    for several, single in zip(many, one, strict=True):
        assert torch.equal(several[..., 2:3, :, :], single)
    weight = many.weight_2[0, 0]
    # orthogonal with gain sqrt 2
    torch.testing.assert_close(weight @ weight.mT, 2 * torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-14)


def test_gradients_are_clipped_for_each_seed_over_both_networks():
    _, gradients = loss_and_gradients(*stale(DOUBLE))
    gradients = [g * torch.tensor([1e3, 1e-9, 1.0], dtype=g.dtype)[:, None, None] for g in gradients]
    before = [g.clone() for g in gradients]
    norms = ppo.clip_gradients(gradients, 0.5)
    for seed in range(3):
        pieces = [g.select(-3, seed).flatten().tolist() for g in before]
        norm = math.sqrt(math.fsum(x * x for piece in pieces for x in piece))
        assert norms[seed].item() == pytest.approx(norm, rel=1e-13)
        for piece, g in zip(pieces, gradients, strict=True):
            scale = min(1.0, 0.5 / norm)
            np.testing.assert_allclose(g.select(-3, seed).flatten().tolist(), np.array(piece) * scale, rtol=1e-13)
    assert norms[0] > 0.5 > norms[1]


def test_adam_is_torchs():
    generator = torch.manual_seed(0)
    weights = [torch.randn(2, 3, 4, dtype=torch.float64, generator=generator) for _ in range(2)]
    theirs = [w.clone().requires_grad_() for w in weights]
    optimizer = torch.optim.Adam(theirs, lr=0.1, eps=1e-5)
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    for step in range(1, 6):
        gradients = [torch.randn(w.shape, dtype=w.dtype, generator=generator) for w in weights]
        for w, g in zip(theirs, gradients, strict=True):
            w.grad = g.clone()
        optimizer.step()
        ppo.adam_step(weights, gradients, first, second, step, lr=0.1)
    for mine, other in zip(weights, theirs, strict=True):
        torch.testing.assert_close(mine, other.detach(), rtol=1e-12, atol=1e-14)
