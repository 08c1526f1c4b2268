"""One update over a batch on any number of devices, and how two outcomes compare."""

import functools

import jax
import numpy as np

from rljax import sharding
from rljax.replay.base import Sample
from rljax.sharding import TRAJECTORY_AXES, Parallel


@functools.cache  # so that an agent's update compiles once
def _compiled(update, devices, backend, batch_axes):
    return sharding.data_parallel(update, sharding.mesh(devices), backend, batch_axes)


def learn(agent, state, batch, key, *, devices=1, backend=Parallel.SHARD_MAP):
    """The state after one update, and its metrics as NumPy has them; the given state survives."""
    axes = 0 if isinstance(batch, Sample) else TRAJECTORY_AXES
    update = _compiled(agent.update, devices, backend, axes)
    state, metrics = update(sharding.replicate(state, sharding.mesh(devices)), batch, key)
    return sharding.local(state), jax.tree.map(np.asarray, sharding.local(metrics))


def same(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def differs(a, b) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(x.shape != y.shape or not np.array_equal(x, y) for x, y in leaves)
