"""A replay that is sampled together with a dataset: each batch has a stated share of its rows.

Half and half is what Ball et al. 2023 (arXiv:2302.02948) call symmetric sampling. The dataset is
part of the state, so that programs hold it once and donated; a checkpoint needs the online part
only.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int

from rljax.offline import outlook
from rljax.replay import ring
from rljax.replay.base import Buffer, Sample
from rljax.replay.ring import Ring
from rljax.types import Transition


class Held(NamedTuple):
    """A dataset on the device."""

    rows: Ring  # full, of one environment
    steps: Int[Array, " M"]  # the numbers of the rows that are steps


class State(NamedTuple):
    """Both sources of a batch."""

    online: Ring
    held: Held


def hold(rows: Transition) -> Held:
    """Rows `[N, ...]` of a dataset, episode behind episode, on the device."""
    steps: Any = np.flatnonzero(rows.valid).astype(np.int32)
    return jax.tree.map(jnp.array, Held(ring.full(rows), steps))  # a copy: it will be donated


def held_bytes(rows: Transition, names: Sequence[str]) -> int:
    """What `hold` takes of rows `[N, ...]` with these columns of `outlook`, and no others."""
    numbers = 4 * int(np.count_nonzero(rows.valid))
    return round(outlook.row_bytes(rows, names) * len(rows.reward)) + numbers


def num_held(dataset_fraction: float, batch_size: int) -> int:
    """How many rows of a batch come from the dataset: the nearest number to the fraction.

    Raises ValueError where that leaves none, or the fraction is none.
    """
    between = 0 <= dataset_fraction <= 1
    count = round(dataset_fraction * batch_size) if between else batch_size
    if count >= batch_size:
        raise ValueError(
            f"dataset_fraction={dataset_fraction} of batch_size={batch_size} must lie in [0, 1) "
            "and leave a row to what is collected."
        )
    return count


def make(online: Buffer, held: Held, batch_size: int, num_steps: int, discount: float) -> Buffer:
    """Samples of `batch_size` rows: those of `online`, a `replay.device`, behind the dataset's.

    How many are the dataset's is what the samples of `online` leave of `batch_size`. While `online`
    cannot be sampled all of them are, and so it can always be sampled. Steps of the dataset are
    drawn with replacement and equal probability. A sample's `index` is, of the dataset's N rows,
    where they lie there; of the others, N + where they lie in the replay.
    """

    def init(row: Transition) -> State:
        return State(online.init(row), held)

    def add(state: State, rows: Transition) -> State:
        return state._replace(online=online.add(state.online, rows))

    def from_dataset(held: Held, key: Array, count: int) -> Sample:
        chosen = jax.random.randint(key, (count,), 0, held.steps.shape[0])
        weight = jnp.ones(count, jnp.float32)
        return ring.take(held.rows, held.steps[chosen], weight, num_steps, discount)

    def sample(state: State, key: Array) -> Sample:
        dataset_key, online_key = jax.random.split(key)
        others = jax.eval_shape(online.sample, state.online, key).weight.shape[0]

        def collected(state: State) -> Sample:
            found = online.sample(state.online, online_key)
            return found._replace(index=ring.length(state.held.rows) + found.index)

        first = from_dataset(state.held, dataset_key, batch_size - others)
        second = jax.lax.cond(
            online.can_sample(state.online),
            collected,
            lambda state: from_dataset(state.held, online_key, others),
            state,
        )
        return jax.tree.map(lambda *x: jnp.concatenate(x), first, second)

    def can_sample(state: State) -> Array:
        del state
        return jnp.bool_(True)

    def update(state: State, index: Array, priority: Array) -> State:
        del index, priority  # all rows alike
        return state

    def cut(state: State) -> State:
        return state._replace(online=online.cut(state.online))

    def size(state: State) -> Array:
        return online.size(state.online)

    return Buffer(init, add, sample, can_sample, update, cut, size)
