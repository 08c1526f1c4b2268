"""Scores: episodes played by a frozen policy, and how sure one can be of their mean.

Every environment plays the same number of episodes, decided beforehand: to take the first ones that
finish would favor short episodes, which in most tasks are the bad or the good ones.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Float

from rljax.agent import Agent
from rljax.envs.base import HostEnv, JaxEnv, TimeStep
from rljax.rollout import decide
from rljax.types import Observation


class Score(NamedTuple):
    """Undiscounted returns `[E]` and lengths `[E]` of E episodes."""

    returns: np.ndarray
    lengths: np.ndarray

    def summary(self) -> dict[str, float]:
        """Mean, deviation over episodes, extremes, mean length."""
        return {
            "return_mean": float(self.returns.mean()),
            "return_std": float(self.returns.std()),
            "return_min": float(self.returns.min()),
            "return_max": float(self.returns.max()),
            "length_mean": float(self.lengths.mean()),
            "episodes": len(self.returns),
        }


def player(
    agent: Agent, env: HostEnv | JaxEnv, num_envs: int, *, greedy: bool
) -> Callable[[Any, int, Array], Score]:
    """A function `play(policy, episodes, key)` that scores policies on these environments.

    Every call starts them anew and has each play its share of the episodes; where the shares are
    not equal, the surplus of the last ones is played and dropped. `num_envs` is for in-graph
    environments; a pool has its own.
    """

    @jax.jit
    def act(
        policy: Any, carry: Any, observation: Observation, ended: Array, key: Array
    ) -> tuple[Any, Array]:
        carry, action, _ = decide(agent, policy, carry, observation, ended, key, greedy)
        return carry, action

    start = _starter(env, num_envs)

    def play(policy: Any, episodes: int, key: Array) -> Score:
        step_all, observation = start(key)
        count = len(jax.tree.leaves(observation.features)[0])
        share = math.ceil(episodes / count)
        carry = agent.initial_carry(count)
        finished: list[list[tuple[float, int]]] = [[] for _ in range(count)]
        total, length = np.zeros(count), np.zeros(count, int)
        ended = np.zeros(count, bool)
        row = 0
        while min(map(len, finished)) < share:
            carry, action = act(policy, carry, observation, ended, jax.random.fold_in(key, row))
            step = step_all(np.asarray(action), row)
            score, over = step.scored
            total += score
            length += ~ended
            ended = step.ended
            for i in np.flatnonzero(over):
                finished[i].append((total[i], length[i]))
                total[i], length[i] = 0.0, 0
            observation = step.observation
            row += 1
        kept = [episode for each in finished for episode in each[:share]]
        returns, lengths = zip(*kept[:episodes], strict=True)
        return Score(np.array(returns), np.array(lengths))

    return play


def _starter(
    env: HostEnv | JaxEnv, num_envs: int
) -> Callable[[Array], tuple[Callable[[np.ndarray, int], TimeStep], Observation]]:
    """From a key to fresh environments: a function that steps them, and what they show first."""
    if not isinstance(env, JaxEnv):
        return lambda key: ((lambda action, row: env.step(action)), env.reset())

    @jax.jit
    def step_all(states: Any, action: Array, key: Array) -> tuple[Any, TimeStep]:
        return jax.vmap(env.step)(states, action, jax.random.split(key, num_envs))

    def start(key: Array) -> tuple[Callable[[np.ndarray, int], TimeStep], Observation]:
        reset_key, key = jax.random.split(key)
        states, observation = jax.vmap(env.reset)(jax.random.split(reset_key, num_envs))

        def step(action: np.ndarray, row: int) -> TimeStep:
            nonlocal states
            states, timestep = step_all(states, action, jax.random.fold_in(key, row))
            return jax.tree.map(np.asarray, timestep)

        return step, observation

    return start


def iqm(scores: Float[np.ndarray, " N"] | Sequence[float]) -> float:
    """Interquartile mean: of the middle half of the scores (Agarwal et al. 2021, §4.3).

    Scores at the quartiles count in part, so that the weights always add to half the scores.
    """
    ordered = np.sort(np.asarray(scores, dtype=float))
    n = len(ordered)
    edges = np.arange(n + 1)
    weights = np.clip(np.minimum(edges[1:], 0.75 * n) - np.maximum(edges[:-1], 0.25 * n), 0, 1)
    return float(np.sum(weights * ordered) / np.sum(weights))


def bootstrap_interval(
    scores: Float[np.ndarray, " N"] | Sequence[float],
    statistic: Callable[[np.ndarray], float] = iqm,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `statistic` over the scores (Efron 1979)."""
    scores = np.asarray(scores, dtype=float)
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(scores), size=(resamples, len(scores)))
    values = [statistic(scores[draw]) for draw in draws]
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
