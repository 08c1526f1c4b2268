"""A tree of sums: draws leaves in proportion to their numbers, at a cost of log N each.

Every node has 16 children, so a million leaves are five levels. A write recomputes the sums above
it from their children: errors do not pile up, and what duplicates write is the same whichever comes
last.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

_FAN = 16

Tree = tuple[Array, ...]  # leaves first, padded to whole families; the last level has one family


def init(size: int) -> Tree:
    """Zeros for `size` leaves."""
    levels = []
    while not levels or size > 1:
        size = -(-size // _FAN)
        levels.append(jnp.zeros(size * _FAN, jnp.float32))
    return tuple(levels)


def total(tree: Tree) -> Float[Array, ""]:
    """The sum of all leaves."""
    return jnp.sum(tree[-1])


def write(tree: Tree, index: Int[Array, " N"], value: Float[Array, " N"]) -> Tree:
    """Puts values, none negative, into leaves that are named once each."""
    return _sum_up((tree[0].at[index].set(value), *tree[1:]), index)


def write_largest(tree: Tree, index: Int[Array, " N"], value: Float[Array, " N"]) -> Tree:
    """Puts values, none negative; of those for the same leaf the largest."""
    leaves = tree[0].at[index].set(0.0).at[index].max(value)
    return _sum_up((leaves, *tree[1:]), index)


def find(tree: Tree, mass: Float[Array, " N"]) -> Int[Array, " N"]:
    """For each mass in [0, total) the leaf at which the running sum of all leaves exceeds it.

    Never a leaf of 0, unless all are.
    """
    node = jnp.zeros(mass.shape, jnp.int32)
    for level in reversed(tree):
        children = level.reshape(-1, _FAN)[node]
        # One after another: only so does a child of 0 leave the sum as it is, to the last bit.
        sums = [children[:, 0]]
        for child in range(1, _FAN):
            sums.append(sums[-1] + children[:, child])
        # The level above was rounded otherwise: not beyond the family.
        mass = jnp.minimum(mass, jnp.nextafter(sums[-1], 0.0))
        chosen, before = jnp.zeros_like(node), jnp.zeros_like(mass)
        for below in sums[:-1]:
            chosen += below <= mass
            before = jnp.where(below <= mass, below, before)
        mass = mass - before
        node = node * _FAN + chosen
    return node


def _sum_up(tree: Tree, index: Array) -> Tree:
    levels = [tree[0]]
    for level in tree[1:]:
        index = index // _FAN
        sums = jnp.sum(levels[-1].reshape(-1, _FAN)[index], axis=1)
        levels.append(level.at[index].set(sums))
    return tuple(levels)
