"""Rows in a ring, time-major `[L, B, ...]`: the newest take the places of the oldest.

What follows a row is the row after it, up to the write cursor and no further: a row may be drawn
once its n successors are there, and while all of them are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int

from rljax.replay.base import Sample
from rljax.types import Transition


class Ring(NamedTuple):
    """Rows of B environments; `length(ring)` of each fit."""

    rows: Transition  # [L, B, ...]
    cursor: Int[Array, ""]  # where the next row goes
    size: Int[Array, ""]  # the rows of each environment that are here, at most L


def rows_per_env(capacity: int, num_envs: int, num_steps: int) -> int:
    """L for `capacity` rows over all environments, rounded down to equally many of each.

    Raises ValueError where no row would keep its `num_steps` successors.
    """
    rows = capacity // num_envs
    if rows <= num_steps:
        raise ValueError(
            f"a replay of {capacity} rows keeps {rows} of each of {num_envs} environments, and "
            f"{num_steps}-step returns need {num_steps + 1}: make its capacity "
            f"{num_envs * (num_steps + 1)} or more."
        )
    return rows


def init(row: Transition, length: int) -> Ring:
    """An empty ring for `length` rows `[B, ...]` like this one, or like its shapes."""
    rows = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), row)
    return Ring(rows, jnp.int32(0), jnp.int32(0))


def full(rows: Transition) -> Ring:
    """Rows `[N, ...]`, one behind another as a dataset has them, as a full ring of one environment.

    NumPy arrays stay where they are, and views: whoever puts them on a device makes the one copy.
    The caller sees to it that the last one is not valid: what would follow it is the first.
    """
    rows = jax.tree.map(lambda x: x[:, None], rows)
    return Ring(rows, jnp.int32(0), jnp.int32(rows.reward.shape[0]))


def length(ring: Ring) -> int:
    """How many rows of each environment fit: L."""
    return ring.rows.reward.shape[0]


def num_envs(ring: Ring) -> int:
    """How many environments' rows lie side by side: B."""
    return ring.rows.reward.shape[1]


def num_rows(ring: Ring) -> Int[Array, ""]:
    """The rows that are here, over all environments."""
    return ring.size * num_envs(ring)


def add(ring: Ring, rows: Transition) -> Ring:
    """Writes `[T, B, ...]` behind the newest, in place where the ring is donated.

    Raises ValueError where T rows do not fit.
    """
    added, kept = rows.reward.shape[0], length(ring)
    if added > kept:
        raise ValueError(f"{added} rows do not fit into a ring of {kept}.")
    places = (ring.cursor + jnp.arange(added)) % kept
    written = jax.tree.map(
        lambda old, new: old.at[places].set(new, unique_indices=True), ring.rows, rows
    )
    return Ring(written, (ring.cursor + added) % kept, jnp.minimum(ring.size + added, kept))


def cut(ring: Ring) -> Ring:
    """Ends every running episode where it is: rows to come do not continue those that are here.

    The newest row becomes what autoreset leaves behind a truncated episode: its observation is
    bootstrapped from, and its action, which led nowhere that was kept, is not learned from.
    """
    valid = ring.rows.valid.at[ring.cursor - 1].set(False)  # -1 is the last place
    return ring._replace(rows=ring.rows._replace(valid=valid))


def take(
    ring: Ring, index: Int[Array, " B"], weight: Array, num_steps: int, discount: float
) -> Sample:
    """The rows at `index`, place · num_envs + environment, with what `num_steps` steps brought.

    The caller sees to it that they are valid, and that all their successors are there.
    """
    place, env = jnp.divmod(index, num_envs(ring))
    kept, rows = length(ring), ring.rows
    steps = jnp.arange(num_steps)[:, None]
    ahead = (place[None] + steps) % kept, env[None]  # [n, B]
    taken = jnp.cumprod(rows.valid[ahead].astype(jnp.int32), axis=0) > 0
    count = jnp.sum(taken, axis=0)  # m
    powers = np.float32(discount) ** np.arange(num_steps + 1, dtype=np.float32)
    reward = jnp.where(taken, rows.reward[ahead] * powers[:-1, None], 0.0)
    goes_on = jnp.prod(jnp.where(taken, rows.discount[ahead], 1.0), axis=0)

    def at(place: Array, tree: Any) -> Any:
        return jax.tree.map(lambda x: x[place, env], tree)

    return Sample(
        observation=at(place, rows.observation),
        action=rows.action[place, env],
        reward=jnp.sum(reward, axis=0),
        discount=jnp.asarray(powers)[count] * goes_on,
        next_observation=at((place + count) % kept, rows.observation),
        weight=weight,
        index=index,
        extras=at(place, rows.extras),
    )


def apart(
    can_sample: Callable[[Any], Array], sample: Callable[[Any, Array], Sample]
) -> Callable[[Any, Array], Sample]:
    """The same `sample`, as a program of its own inside of others; where it cannot, rows of zeros
    that allow every action and have weight 0.

    XLA would fuse its reads with the writes before and after it, and then copy the whole replay to
    have it as it was before the write and as it is after. It fuses nothing across a branch.
    """  # noqa: D205

    def guarded(state: Any, key: Array) -> Sample:
        shapes = jax.eval_shape(sample, state, key)
        nothing = jax.tree.map(lambda x: jnp.full(x.shape, x.dtype == bool, x.dtype), shapes)
        return jax.lax.cond(can_sample(state), sample, lambda *_: nothing, state, key)

    return guarded
