"""Uniform replay in device memory: a ring whose valid rows are drawn with equal probability."""

import jax
import jax.numpy as jnp
from jax import Array

from rljax.replay import ring
from rljax.replay.base import Buffer, Sample
from rljax.replay.ring import Ring
from rljax.types import Transition

_TRIES = 16  # half of all rows invalid, as in episodes of one step: 2 rows in 100,000 are ignored


def make(
    capacity: int, num_envs: int, batch_size: int, discount: float, num_steps: int = 1
) -> Buffer:
    """Room for `capacity` rows over all environments, rounded down to equally many of each.

    Samples are drawn with replacement. A row of a sample has weight 0 where `_TRIES` draws met only
    rows that autoreset put there. With `num_steps=0` the newest rows are drawn too; what came of
    a row is then not told: its reward is 0, and what comes next is the row's own observation.

    Raises ValueError where no row could ever be sampled.
    """
    length = ring.rows_per_env(capacity, num_envs, num_steps)

    def init(row: Transition) -> Ring:
        return ring.init(row, length)

    def sample(state: Ring, key: Array) -> Sample:
        index, found = _draw(state, key, batch_size, num_steps)
        return ring.take(state, index, found.astype(jnp.float32), num_steps, discount)

    def can_sample(state: Ring) -> Array:
        return state.size > num_steps

    def update(state: Ring, index: Array, priority: Array) -> Ring:
        del index, priority  # all rows alike
        return state

    alone = ring.apart(can_sample, sample)
    return Buffer(init, ring.add, alone, can_sample, update, ring.cut, ring.num_rows)


def _draw(state: Ring, key: Array, batch_size: int, num_steps: int) -> tuple[Array, Array]:
    """`[B]` places of rows, and whether each is a valid one.

    Every row's tries are independent and uniform. Only the first is drawn for each row: to it are
    added numbers modulo the rows there are, uniform ones too, which all rows of the sample share.
    That needs B + 16 random numbers instead of 16 B.
    """
    oldest = state.cursor - state.size
    count = jnp.maximum(state.size - num_steps, 1) * ring.num_envs(state)
    first_key, next_key = jax.random.split(key)
    first = jax.random.randint(first_key, (1, batch_size), 0, count)
    later = jax.random.randint(next_key, (_TRIES - 1, 1), 0, count)
    tries = jnp.concatenate([first, (first + later) % count])  # [16, B], by age
    place, env = jnp.divmod(tries, ring.num_envs(state))
    place = (place + oldest) % ring.length(state)
    valid = state.rows.valid[place, env] & (state.size > num_steps)
    chosen = jnp.argmax(valid, axis=0)[None]  # the first valid one
    index = place * ring.num_envs(state) + env
    index = jnp.take_along_axis(index, chosen, axis=0)[0]
    return index, jnp.take_along_axis(valid, chosen, axis=0)[0]
