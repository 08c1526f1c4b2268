"""What an episode was worth is known when it has ended: it is then written to the rows it left.

Rows come with `UNKNOWN` as their return to go. Where an episode ends, its rows get what
`rljax.offline.outlook` would give them, if they are not older than `lookback` rows. What is never
known stays `UNKNOWN`: earlier rows of longer episodes, and those of an episode that was cut off by
a restart, of which a part of the return would be no bound.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from rljax import returns
from rljax.offline.outlook import RETURN_TO_GO
from rljax.replay import ring
from rljax.replay.base import Buffer
from rljax.replay.ring import Ring
from rljax.types import Transition

UNKNOWN = -math.inf  # as a bound from below it says nothing


def completing(buffer: Buffer, discount: float, lookback: int, least: float = 0.0) -> Buffer:
    """A buffer over a `Ring` whose rows carry `RETURN_TO_GO`, which `add` completes.

    `least` is what comes at the least behind a time limit (`outlook.least_to_come`).
    """

    def add(state: Ring, rows: Transition) -> Ring:
        return complete(buffer.add(state, rows), rows.reward.shape[0], discount, lookback, least)

    return buffer._replace(add=add)


def complete(state: Ring, added: int, discount: float, lookback: int, least: float = 0.0) -> Ring:
    """The ring with Σ_k γ^k r_{t+k} in rows of episodes that ended in the `added` newest rows."""
    count = min(ring.length(state), added + lookback)
    place = (state.cursor - count + jnp.arange(count)) % ring.length(state)  # the oldest first
    kept = state.rows
    reward, goes_on, valid, before = (
        x[place] for x in (kept.reward, kept.discount, kept.valid, kept.extras[RETURN_TO_GO])
    )
    is_last = valid & ~jnp.roll(valid, -1, axis=0)
    reward += jnp.where(is_last & (goes_on > 0), discount * least, 0.0)
    to_go = returns.linear_recurrence(
        jnp.where(valid, reward, 0.0), jnp.where(valid, discount, 0.0), reverse=True
    )
    number = jnp.broadcast_to(jnp.arange(count)[:, None], valid.shape)
    end: Array = jax.lax.cummin(jnp.where(valid, count, number), reverse=True)
    ended_now = valid & (end < count) & (end >= count - added)
    written = (
        state.rows.extras[RETURN_TO_GO]
        .at[place]
        .set(jnp.where(ended_now, to_go, before), unique_indices=True)
    )
    extras = {**state.rows.extras, RETURN_TO_GO: written}
    return state._replace(rows=state.rows._replace(extras=extras))
