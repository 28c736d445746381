"""PPO on CartPole-v1 by the procedure of CleanRL's ppo.py (Huang et al. 2022, JMLR 23:274), written anew.

One seed, a Python loop over steps, four `gym.make` environments behind `SyncVectorEnv`, torch modules and autograd,
`torch.optim.Adam` with eps 1e-5 and a linearly annealed rate; advantages normalised in each minibatch, squared value
error clipped like the ratio, an episode cut at 500 steps treated as terminated. As in the gymnasium that CleanRL was
written for, environments reset within the step. Left out is what CleanRL only writes down: losses and explained
variance for TensorBoard, which makes this the faster of the two.

Prints one line of JSON:

    python benchmarks/peers/cleanrl_ppo.py --steps 500000
"""

import argparse
import json
import math
import time
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from steps_to_return import steps_to_return
from torch import Tensor, nn
from torch.distributions import Categorical

ENVS, STEPS, EPOCHS, MINIBATCHES = 4, 128, 4, 4
ROLLOUT = ENVS * STEPS
LR, EPS, MAX_NORM = 2.5e-4, 1e-5, 0.5
GAMMA, LAMBDA, CLIP, ENTROPY_COEF, VALUE_COEF = 0.99, 0.95, 0.2, 0.01, 0.5


def layer(inputs: int, outputs: int, gain: float = math.sqrt(2)) -> nn.Linear:
    """A linear layer with orthogonal weights and no bias."""
    linear = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(linear.weight, gain)
    nn.init.zeros_(linear.bias)
    return linear


class Agent(nn.Module):
    """Separate critic and actor of two 64-unit tanh layers."""

    def __init__(self):
        super().__init__()
        self.critic = nn.Sequential(layer(4, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, 1, 1.0))
        self.actor = nn.Sequential(layer(4, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, 2, 0.01))

    def value(self, observation: Tensor) -> Tensor:
        """V(s), [...]."""
        return self.critic(observation).flatten()

    def forward(self, observation: Tensor, action: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The action (drawn if none is given), its log-probability, the policy's entropy, and the value."""
        policy = Categorical(logits=self.actor(observation))
        action = policy.sample() if action is None else action
        return action, policy.log_prob(action), policy.entropy(), self.value(observation)


class Rollout(NamedTuple):
    """One rollout, [steps, envs]; `done[t]` says that the episode ended before step t, so `done` has steps + 1 rows."""

    observation: Tensor
    action: Tensor
    logp: Tensor
    reward: Tensor
    done: Tensor
    value: Tensor


def empty_rollout() -> Rollout:
    """Room for one rollout."""
    one = (STEPS, ENVS)
    return Rollout(
        torch.zeros(*one, 4),
        torch.zeros(one, dtype=torch.long),
        torch.zeros(one),
        torch.zeros(one),
        torch.zeros(STEPS + 1, ENVS),
        torch.zeros(one),
    )


@torch.no_grad()
def collect(agent: Agent, envs, rollout: Rollout, observation: Tensor, done: Tensor) -> tuple[Tensor, Tensor, list]:
    """Fill a rollout.

    Returns: the observation and `done` to go on from; for each step the returns of the episodes that ended in it, NaN
      where none did, [steps, envs].
    """
    returns = []
    for t in range(STEPS):
        rollout.observation[t], rollout.done[t] = observation, done
        action, rollout.logp[t], _, rollout.value[t] = agent(observation)
        rollout.action[t] = action
        following, reward, terminated, truncated, infos = envs.step(action.numpy())
        rollout.reward[t] = torch.tensor(reward)
        observation, done = torch.tensor(following), torch.tensor(terminated | truncated, dtype=torch.float32)
        ended = np.full(ENVS, np.nan)
        if "final_info" in infos:
            episode = infos["final_info"]["episode"]
            ended[episode["_r"]] = episode["r"][episode["_r"]]
        returns.append(ended)
    rollout.done[STEPS] = done
    return observation, done, returns


def advantages(reward: Tensor, value: Tensor, done: Tensor, last_value: Tensor) -> Tensor:
    """Generalised advantage estimate, [steps, envs].

    Args:
      reward, value: [steps, envs].
      done: [steps + 1, envs], whether the episode ended before that step.
      last_value: [envs], of the state after the last step.
    """
    estimate, later = torch.zeros_like(reward), 0.0
    for t in reversed(range(len(reward))):
        going_on = 1.0 - done[t + 1]
        next_value = last_value if t + 1 == len(reward) else value[t + 1]
        delta = reward[t] + GAMMA * next_value * going_on - value[t]
        estimate[t] = later = delta + GAMMA * LAMBDA * going_on * later
    return estimate


def loss(agent: Agent, batch: Rollout, advantage: Tensor, target: Tensor) -> Tensor:
    """The clipped objective, the clipped value loss and the entropy bonus of one minibatch."""
    _, logp, entropy, value = agent(batch.observation, batch.action)
    ratio = (logp - batch.logp).exp()
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    policy_loss = torch.max(-advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
    near = batch.value + (value - batch.value).clamp(-CLIP, CLIP)
    value_loss = 0.5 * torch.max((value - target) ** 2, (near - target) ** 2).mean()
    return policy_loss - ENTROPY_COEF * entropy.mean() + VALUE_COEF * value_loss


def update(agent: Agent, optimiser: torch.optim.Adam, rollout: Rollout, advantage: Tensor) -> None:
    """All epochs over one rollout."""
    fields = Rollout(*(field[:STEPS].flatten(0, 1) for field in rollout))
    flat_advantage, target = advantage.flatten(), (advantage + rollout.value).flatten()
    order = np.arange(ROLLOUT)
    for _ in range(EPOCHS):
        np.random.shuffle(order)
        for index in np.split(order, MINIBATCHES):
            batch = Rollout(*(field[index] for field in fields))
            optimiser.zero_grad()
            loss(agent, batch, flat_advantage[index], target[index]).backward()
            nn.utils.clip_grad_norm_(agent.parameters(), MAX_NORM)
            optimiser.step()


def train(seed: int, updates: int) -> np.ndarray:
    """Train for `updates` rollouts; the returns of the episodes where they ended, else NaN, [updates, steps, envs]."""
    np.random.seed(seed)
    torch.manual_seed(seed)
    envs = gym.vector.SyncVectorEnv(
        [lambda: gym.wrappers.RecordEpisodeStatistics(gym.make("CartPole-v1"))] * ENVS,
        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
    )
    agent = Agent()
    optimiser = torch.optim.Adam(agent.parameters(), lr=LR, eps=EPS)
    rollout, returns = empty_rollout(), []
    observation, done = torch.tensor(envs.reset(seed=seed)[0]), torch.zeros(ENVS)
    for number in range(updates):
        optimiser.param_groups[0]["lr"] = LR * (1 - number / updates)
        observation, done, ended = collect(agent, envs, rollout, observation, done)
        with torch.no_grad():
            last_value = agent.value(observation)
        update(agent, optimiser, rollout, advantages(rollout.reward, rollout.value, rollout.done, last_value))
        returns.append(ended)
    envs.close()
    return np.array(returns)


def main() -> None:
    """Train, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500_000, help="environment steps of each seed")
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=1, help="trained one after the other")
    options = parser.parse_args()
    torch.set_num_threads(1)
    updates = options.steps // ROLLOUT
    train(options.seed, 1)  # touches everything once
    start, start_cpu = time.perf_counter(), time.process_time()
    returns = np.array([train(seed, updates) for seed in range(options.seed, options.seed + options.seeds)])
    running, running_cpu = time.perf_counter() - start, time.process_time() - start_cpu
    steps = options.seeds * updates * ROLLOUT
    result = {
        "steps_per_second": steps / running,
        "steps_per_cpu_second": steps / running_cpu,
        "steps_to_return": steps_to_return(np.isfinite(returns), returns),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
