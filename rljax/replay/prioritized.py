"""Proportional prioritized replay (Schaul et al. 2016, arXiv:1511.05952, §3.3 and §3.4).

Rows are drawn in proportion to p^α, p = |TD error| + ε, one from each of `batch_size` equal shares
of the total; their importance weights are (N · P)^-β over the largest of the sample. A row that has
come and was never learned from counts as the largest priority seen so far.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from rljax.replay import ring, sum_tree
from rljax.replay.base import Buffer, Sample
from rljax.replay.ring import Ring
from rljax.replay.sum_tree import Tree
from rljax.types import Transition

_EPSILON = 1e-6  # ε of §3.3: a row without error may come again


class State(NamedTuple):
    """Rows, and for each the power of its priority: 0 where it may not be drawn."""

    ring: Ring
    powers: Tree  # of p^α, by place · num_envs + environment
    largest: Float[Array, ""]  # p^α, of all that there were


def make(
    capacity: int,
    num_envs: int,
    batch_size: int,
    discount: float,
    num_steps: int = 1,
    priority_exponent: float = 0.6,
    importance_exponent: float = 0.4,
) -> Buffer:
    """Room for `capacity` rows over all environments, rounded down to equally many of each.

    α is `priority_exponent` (0: uniform), β `importance_exponent` (1: weights undo the
    priorities). `update` takes the index of a sample and its |TD errors|; of a row that was drawn
    twice the larger one is kept.

    Raises ValueError where no row could ever be sampled.
    """
    length = ring.rows_per_env(capacity, num_envs, num_steps)

    def init(row: Transition) -> State:
        return State(ring.init(row, length), sum_tree.init(length * num_envs), jnp.float32(1))

    def add(state: State, rows: Transition) -> State:
        """What is `num_steps` rows old has its successors now; what is newer awaits them."""
        added = rows.reward.shape[0]
        if added + num_steps > length:
            raise ValueError(
                f"{added} rows and {num_steps} to wait for successors do not fit into a ring of "
                f"{length}."
            )
        kept = ring.add(state.ring, rows)
        age = jnp.arange(added + num_steps, 0, -1)
        place = (kept.cursor - age) % length
        ready = kept.rows.valid[place] & (age > num_steps)[:, None]
        power = jnp.where(ready, state.largest, 0.0)
        index = place[:, None] * num_envs + jnp.arange(num_envs)[None]
        powers = sum_tree.write(state.powers, index.reshape(-1), power.reshape(-1))
        return State(kept, powers, state.largest)

    def sample(state: State, key: Array) -> Sample:
        share = jnp.arange(batch_size) + jax.random.uniform(key, (batch_size,))
        mass = share / batch_size * sum_tree.total(state.powers)
        index = jnp.minimum(sum_tree.find(state.powers, mass), length * num_envs - 1)
        power = state.powers[0][index]
        smallest = jnp.min(jnp.where(power > 0, power, jnp.inf))
        # N and the total are the same for all rows, and leave with the largest weight.
        weight = jnp.where(power > 0, (smallest / power) ** importance_exponent, 0.0)
        return ring.take(state.ring, index, weight, num_steps, discount)

    def can_sample(state: State) -> Array:
        return sum_tree.total(state.powers) > 0

    def update(state: State, index: Array, priority: Array) -> State:
        power = (jnp.abs(priority) + _EPSILON) ** priority_exponent
        power = jnp.where(can_sample(state), power, 0.0)
        powers = sum_tree.write_largest(state.powers, index, power)
        return State(state.ring, powers, jnp.maximum(state.largest, jnp.max(power)))

    def cut(state: State) -> State:
        return state._replace(ring=ring.cut(state.ring))  # the newest row's power is 0 yet

    def size(state: State) -> Array:
        return ring.num_rows(state.ring)

    return Buffer(init, add, ring.apart(can_sample, sample), can_sample, update, cut, size)
