"""How likely a policy, and whoever made a log, is to do what was logged: ratios for `--ope`.

Where the log has no propensities, they are estimated by behavior cloning, each half of the episodes
by a clone of the other.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from agents import bc
from rljax.agent import Agent
from rljax.loops import offline
from rljax.offline.dataset import Dataset
from rljax.types import Observation

_CHUNK = 4096  # rows that are looked at in one call
_LEAST = 1e-6  # of an estimated propensity: what was logged had a chance
_RARE = 1e-4  # mass beside the log that is as good as none

Columns = TypeVar("Columns")  # arrays [N]


class Ratios(NamedTuple):
    """The weights of the log's rows; N rows, final observations too."""

    log_ratio: np.ndarray  # [N]: ln π(a|s) - ln b(a|s)
    uncovered: np.ndarray | None  # [N]: π's probability of what the log never holds; or unknown
    propensities: str  # "logged" or "estimated"


def of_choices(agent: Agent, policy: Any, dataset: Dataset, *, greedy: bool, seed: int) -> Ratios:
    """The ratios where actions are one of several."""
    said = decisions(agent, policy, dataset.rows.observation, greedy=greedy, seed=seed)
    chances = said["probabilities"]
    if greedy:
        chances = np.eye(chances.shape[1])[said["action"].astype(int)]
    known = "log_prob" in dataset.rows.extras
    behavior = np.asarray(
        dataset.rows.extras["log_prob"] if known else _cloned_choices(dataset, seed), np.float64
    )
    with np.errstate(divide="ignore"):
        log_ratio = np.log(_of_action(chances, dataset)) - behavior
    taken = np.unique(np.asarray(dataset.rows.action)[dataset.rows.valid])
    never = np.setdiff1d(np.arange(chances.shape[1]), taken)
    uncovered = chances[:, never].sum(axis=1)
    rare = uncovered[dataset.rows.valid].mean() < _RARE
    source = "logged" if known else "estimated"
    return Ratios(log_ratio, None if rare else uncovered, source)


def decisions(
    agent: Agent, policy: Any, observations: Observation, *, greedy: bool, seed: int
) -> dict[str, np.ndarray]:
    """What a feed-forward policy does, "action", and says of it, the extras of `act`, float64.

    `[N, ...]` for observations `[N, ...]`.
    """

    @jax.jit
    def chunk(seen: Observation, key: jax.Array) -> dict[str, jax.Array]:
        _, action, extras = agent.act(policy, (), seen, key, greedy)
        return {"action": action, **extras}

    count = len(jax.tree.leaves(observations)[0])
    found = []
    for first in range(0, count, _CHUNK):
        # The last one is padded with its own last row: one size is one compilation.
        places = np.minimum(np.arange(first, first + _CHUNK), count - 1)
        seen = jax.tree.map(lambda x, places=places: x[places], observations)
        found.append(chunk(seen, jax.random.fold_in(jax.random.key(seed), first)))
    joined = jax.tree.map(lambda *xs: np.concatenate(xs)[:count], *jax.device_get(found))
    return {name: np.asarray(column, np.float64) for name, column in joined.items()}


def crossed(dataset: Dataset, seed: int, learn: Callable[[Dataset], Columns]) -> Columns:
    """Each half of the episodes as `learn` sees it from the other half; from itself if it is alone.

    `learn` gives arrays `[N]` for all rows of `dataset`. What is fitted to the rows that it is
    asked about has learned their chance, too, and estimates would not show it.
    """
    count = dataset.num_episodes
    if count < 2:
        return learn(dataset)
    half = np.random.default_rng(seed).permutation(count) < count // 2
    row = np.repeat(half, np.diff(dataset.starts))
    one, other = (
        learn(dataset.select(np.flatnonzero(half != fold).tolist())) for fold in (False, True)
    )
    return jax.tree.map(lambda x, y: np.where(row, y, x), one, other)


def clone(dataset: Dataset, seed: int, updates: int = 5_000, **settings: Any) -> tuple[Agent, Any]:
    """Who did what was logged, as far as it can be told: an agent and its policy."""
    config = bc.Config(total_updates=updates, hidden_sizes=(64, 64), **settings)
    agent = bc.make(config, dataset.spec)
    loop = dataclasses.replace(bc.loop(config), seed=seed, num_devices=1)
    state = offline.init(agent, dataset, loop)
    *_, (_, state, _) = offline.run(agent, dataset, state, loop, 0)
    return agent, state.train.policy


def _cloned_choices(dataset: Dataset, seed: int) -> np.ndarray:
    """Estimated ln propensity of each logged action, `[N]`, by a clone that has not seen it.

    Raises ValueError where there is one episode only.
    """
    _check_count(dataset)

    def learn(others: Dataset) -> np.ndarray:
        agent, policy = clone(others, seed)
        seen = dataset.rows.observation
        said = decisions(agent, policy, seen, greedy=False, seed=seed)
        return np.log(np.maximum(_of_action(said["probabilities"], dataset), _LEAST))

    return crossed(dataset, seed, learn)


def _check_count(dataset: Dataset) -> None:
    if dataset.num_episodes < 2:
        raise ValueError(
            "the log has no propensities, and one episode is too few to estimate them."
        )


def _of_action(chances: np.ndarray, dataset: Dataset) -> np.ndarray:
    return np.take_along_axis(chances, np.asarray(dataset.rows.action)[:, None], axis=1)[:, 0]
