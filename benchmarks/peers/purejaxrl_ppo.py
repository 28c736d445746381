"""PPO on CartPole-v1 by the procedure of PureJaxRL (Lu et al. 2022, "Discovered Policy Optimisation"), written anew.

The whole training, environments included, is one jitted function of a key, and seeds are `jax.vmap`. What makes it
that procedure and not only PPO:

- gymnax's CartPole, which resets within the step; an episode cut at 500 steps counts as terminated;
- hyper-parameters of CleanRL's ppo.py: 4 environments x 128 steps, 4 epochs x 4 minibatches, Adam (eps 1e-5) with a
  linearly annealed rate of 2.5e-4, gamma .99, lambda .95, clip .2, entropy bonus .01, value loss .5, norm .5;
- advantages normalised in each minibatch, squared value error clipped like the ratio;
- separate actor and critic of two 64-unit tanh layers, orthogonal, gains sqrt 2, .01 (actor) and 1 (critic).

It differs from the published program in two ways that cost it nothing: the categorical distribution is written out
instead of taken from distrax, and of the episode records only the two that are read are kept.

Runs in an environment of its own (`make benchmark-peers`) and prints one line of JSON:

    .venv-benchmarks/bin/python benchmarks/peers/purejaxrl_ppo.py --seeds 32 --steps 500000
"""

import argparse
import json
import math
import time
from typing import NamedTuple

import flax.linen as nn
import gymnax
import jax
import jax.numpy as jnp
import optax
from flax.linen.initializers import orthogonal
from flax.training.train_state import TrainState
from gymnax.wrappers.purerl import LogWrapper
from steps_to_return import steps_to_return

ENVS, STEPS, EPOCHS, MINIBATCHES = 4, 128, 4, 4
ROLLOUT = ENVS * STEPS
LR, EPS, MAX_NORM = 2.5e-4, 1e-5, 0.5
GAMMA, LAMBDA, CLIP, ENTROPY_COEF, VALUE_COEF = 0.99, 0.95, 0.2, 0.01, 0.5


class Transition(NamedTuple):
    """One step of every environment; over a rollout, [steps, envs]. `episode_return` is valid where `done`."""

    observation: jax.Array
    action: jax.Array
    logp: jax.Array
    value: jax.Array
    reward: jax.Array
    done: jax.Array
    episode_return: jax.Array


class Runner(NamedTuple):
    """What a step changes."""

    learner: TrainState
    env_state: object
    observation: jax.Array
    key: jax.Array


class ActorCritic(nn.Module):
    """Log-probabilities [..., 2] and value [...] of observations [..., 4]."""

    @nn.compact
    def __call__(self, observation):
        def tower(gain, outputs):
            x = observation
            for _ in range(2):
                x = nn.tanh(nn.Dense(64, kernel_init=orthogonal(math.sqrt(2)))(x))
            return nn.Dense(outputs, kernel_init=orthogonal(gain))(x)

        return nn.log_softmax(tower(0.01, 2)), tower(1.0, 1).squeeze(-1)


def chosen(logps, action):
    """Log-probability of the action taken."""
    return jnp.take_along_axis(logps, action[..., None], -1).squeeze(-1)


def make_learner(key, updates: int) -> TrainState:
    """Fresh networks, and Adam whose rate falls linearly over `updates` rollouts."""

    def rate(count):
        return LR * (1 - (count // (EPOCHS * MINIBATCHES)) / updates)

    network = ActorCritic()
    optimiser = optax.chain(optax.clip_by_global_norm(MAX_NORM), optax.adam(rate, eps=EPS))
    return TrainState.create(apply_fn=network.apply, params=network.init(key, jnp.zeros(4)), tx=optimiser)


def normalise(advantage):
    """Mean 0 and standard deviation 1."""
    return (advantage - advantage.mean()) / (advantage.std() + 1e-8)


def act(env, params, runner: Runner) -> tuple[Runner, Transition]:
    """One step of every environment."""
    key, key_action, key_step = jax.random.split(runner.key, 3)
    logps, value = runner.learner.apply_fn(runner.learner.params, runner.observation)
    action = jax.random.categorical(key_action, logps)
    observation, env_state, reward, terminated, truncated, info = jax.vmap(env.step, (0, 0, 0, None))(
        jax.random.split(key_step, ENVS), runner.env_state, action, params
    )
    record = Transition(
        runner.observation,
        action,
        chosen(logps, action),
        value,
        reward,
        terminated | truncated,
        info["returned_episode_returns"],
    )
    return Runner(runner.learner, env_state, observation, key), record


def advantages(rollout: Transition, last_value):
    """Generalised advantage estimate, [steps, envs]."""

    def back(carry, step):
        later, next_value = carry
        reward, value, going_on = step
        delta = reward + GAMMA * next_value * going_on - value
        estimate = delta + GAMMA * LAMBDA * going_on * later
        return (estimate, value), estimate

    steps = rollout.reward, rollout.value, 1.0 - rollout.done
    return jax.lax.scan(back, (jnp.zeros_like(last_value), last_value), steps, reverse=True, unroll=16)[1]


def loss(params, apply, batch: Transition, advantage, target):
    """The clipped objective, the clipped value loss and the entropy bonus of one minibatch."""
    logps, value = apply(params, batch.observation)
    advantage = normalise(advantage)
    ratio = jnp.exp(chosen(logps, batch.action) - batch.logp)
    policy_loss = -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage).mean()
    near = batch.value + jnp.clip(value - batch.value, -CLIP, CLIP)
    value_loss = 0.5 * jnp.maximum((value - target) ** 2, (near - target) ** 2).mean()
    entropy = -(jnp.exp(logps) * logps).sum(-1).mean()
    return policy_loss + VALUE_COEF * value_loss - ENTROPY_COEF * entropy


def learn(learner: TrainState, minibatch) -> TrainState:
    """One optimizer step."""
    gradient = jax.grad(loss)(learner.params, learner.apply_fn, *minibatch)
    return learner.apply_gradients(grads=gradient)


def train(key, updates: int):
    """Train one seed for `updates` rollouts; whether and with what return episodes ended, [updates, steps, envs]."""
    env, params = gymnax.make("CartPole-v1")
    env = LogWrapper(env)
    key, key_network, key_reset = jax.random.split(key, 3)
    observation, env_state = jax.vmap(env.reset, (0, None))(jax.random.split(key_reset, ENVS), params)

    def epoch(carry, _):
        learner, data, key = carry
        key, key_order = jax.random.split(key)
        order = jax.random.permutation(key_order, ROLLOUT)
        shuffled = jax.tree.map(lambda x: x[order].reshape(MINIBATCHES, -1, *x.shape[1:]), data)
        learner, _ = jax.lax.scan(lambda carry, minibatch: (learn(carry, minibatch), None), learner, shuffled)
        return (learner, data, key), None

    def update(runner, _):
        runner, rollout = jax.lax.scan(lambda carry, _: act(env, params, carry), runner, None, STEPS)
        _, last_value = runner.learner.apply_fn(runner.learner.params, runner.observation)
        advantage = advantages(rollout, last_value)
        target = advantage + rollout.value
        data = jax.tree.map(lambda x: x.reshape(ROLLOUT, *x.shape[2:]), (rollout, advantage, target))
        (learner, _, key), _ = jax.lax.scan(epoch, (runner.learner, data, runner.key), None, EPOCHS)
        return runner._replace(learner=learner, key=key), (rollout.done, rollout.episode_return)

    runner = Runner(make_learner(key_network, updates), env_state, observation, key)
    return jax.lax.scan(update, runner, None, updates)[1]


def main() -> None:
    """Compile, run, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=32, help="trained together")
    parser.add_argument("--steps", type=int, default=500_000, help="environment steps of each seed")
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    options = parser.parse_args()
    updates = options.steps // ROLLOUT
    keys = jax.vmap(jax.random.key)(options.seed + jnp.arange(options.seeds))
    function = jax.vmap(lambda key: train(key, updates))
    start = time.perf_counter()
    compiled = jax.jit(function).lower(keys).compile()
    compiling = time.perf_counter() - start
    start, start_cpu = time.perf_counter(), time.process_time()
    done, returns = jax.block_until_ready(compiled(keys))
    running, running_cpu = time.perf_counter() - start, time.process_time() - start_cpu
    steps = options.seeds * updates * ROLLOUT
    result = {
        "compile_seconds": compiling,
        "steps_per_second": steps / running,
        "steps_per_cpu_second": steps / running_cpu,
        "steps_to_return": steps_to_return(done, returns),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
