"""Episodes by policies that are there: what datasets are made of."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from rljax import rollout
from rljax.agent import Agent
from rljax.envs.base import HostEnv, JaxEnv
from rljax.offline.dataset import Episode
from rljax.types import Box, Transition

_ROWS = 256  # collected at a time, of every environment
_STORES = ("log_prob",)


def collector(
    agent: Agent, env: HostEnv | JaxEnv, num_envs: int
) -> Callable[[Any, int, Array], list[Episode]]:
    """`collect(policy, episodes, key)`: whole episodes by sampled actions, with their log_prob.

    Every environment gives the same number of episodes, decided beforehand: to take the first ones
    that end would favor short ones. `num_envs` is for in-graph environments; a pool has its own.

    An action beyond the bounds of a box is kept as the environment took it, clipped; its density
    stays that of the draw.
    """
    agent = agent._replace(stores=_STORES)
    num_envs = num_envs if isinstance(env, JaxEnv) else env.num_envs
    made = rollout.make(agent, env, num_envs, _ROWS, rollout.Kind.AUTO)

    def collect(policy: Any, episodes: int, key: Array) -> list[Episode]:
        share = math.ceil(episodes / num_envs)
        state = made.init(jax.random.fold_in(key, 0))
        finished: list[list[Episode]] = [[] for _ in range(num_envs)]
        open_rows: list[list[Transition]] = [[] for _ in range(num_envs)]
        number = 0
        while min(map(len, finished)) < share:
            number += 1
            state, trajectory, _ = made.collect(policy, state, jax.random.fold_in(key, number))
            rows = jax.tree.map(np.asarray, trajectory.transitions)
            for i, column in enumerate(open_rows):
                if len(finished[i]) < share:
                    column.append(jax.tree.map(lambda x, i=i: x[:, i], rows))
                    whole, rest = _cut(_joined(column))
                    finished[i] += map(_with_bounds(agent), whole)
                    open_rows[i] = [rest]
        # Round by round over the environments, so that the surplus is dropped evenly.
        kept = [each[turn] for turn in range(share) for each in finished]
        return kept[:episodes]

    return collect


def _joined(parts: list[Transition]) -> Transition:
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


def _cut(rows: Transition) -> tuple[list[Episode], Transition]:
    """The episodes that have ended in rows `[T, ...]`, and the rows of the one that goes on.

    The row that autoreset puts behind an ending holds the final observation (`rljax.types`).
    """
    whole, first = [], 0
    for last in np.flatnonzero(~rows.valid):
        steps = slice(first, last)
        whole.append(
            Episode(
                jax.tree.map(lambda x, first=first, last=last: x[first : last + 1], rows[0]),
                rows.action[steps],
                rows.reward[steps],
                bool(rows.discount[last - 1] == 0),
                {name: rows.extras[name][steps] for name in _STORES},
            )
        )
        first = last + 1
    return whole, jax.tree.map(lambda x: x[first:], rows)


def _with_bounds(agent: Agent) -> Callable[[Episode], Episode]:
    def bounded(episode: Episode) -> Episode:
        box = agent.spec.action
        if not isinstance(box, Box):
            return episode
        low, high = np.array(box.low, np.float32), np.array(box.high, np.float32)
        return episode._replace(action=np.clip(episode.action, low[None], high[None]))

    return bounded


def nearest(scores: Iterable[float], wanted: float) -> int:
    """The number of the score that is nearest to the wanted one; the first of equals."""
    return int(np.argmin([abs(score - wanted) for score in scores]))


def until_reached(scores: Sequence[float], wanted: float) -> int:
    """How many scores there are up to the first that is near `wanted`, or beyond it.

    Near is the nearest of all. What a run that goes up and down earned later is not counted, as in
    D4RL's medium-replay, which ends where medium is first reached (Fu et al. 2020, §5).
    """
    enough = min(wanted, scores[nearest(scores, wanted)])
    return 1 + next(i for i, score in enumerate(scores) if score >= enough)


def shares(episodes: int, parts: int) -> Iterator[int]:
    """Whole numbers that add to `episodes`, the first ones larger by one where they must."""
    for part in range(parts):
        yield episodes // parts + (part < episodes % parts)
