"""Made-up samples of replay, and one update over them on any number of devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rljax import sharding
from rljax.agent import PRIORITY
from rljax.replay.base import Sample
from rljax.types import Box, EnvSpec, Observation

B = 8  # rows


def sample(spec: EnvSpec, key: jax.Array, rows: int = B) -> Sample:
    """Random rows with γ = 0.9, of which the first terminated; the last has no weight."""
    keys = iter(jax.random.split(key, 10))

    def observation() -> Observation:
        arrays = {
            name: jax.random.normal(next(keys), (rows, *shape))
            if dtype == "float32"
            else jax.random.randint(next(keys), (rows, *shape), 0, 256).astype(dtype)
            for name, shape, dtype in spec.parts
        }
        features = arrays if spec.named_parts else arrays["observation"]
        if not spec.has_mask:
            return Observation(features)
        mask = jax.random.bernoulli(next(keys), 0.5, (rows, *spec.action.mask_shape))
        return Observation(features, mask.at[:, 0].set(True))

    if isinstance(spec.action, Box):
        low, high = jnp.array(spec.action.low)[None], jnp.array(spec.action.high)[None]
        action = low + (high - low) * jax.random.uniform(next(keys), (rows, *spec.action.shape))
    else:
        action = jax.random.randint(next(keys), (rows,), 0, spec.action.num_actions)
    return Sample(
        observation(),
        action,
        jax.random.normal(next(keys), (rows,)),
        jnp.full(rows, 0.9).at[0].set(0.0),
        observation(),
        jnp.ones(rows).at[-1].set(0.0),
        jnp.arange(rows),
    )


@functools.cache  # so that an agent's update compiles once
def _updater(update, devices, backend):
    return sharding.data_parallel(update, sharding.mesh(devices), backend, batch_axes=0)


def learn(agent, state, batch, key, *, devices=1, backend=sharding.Parallel.SHARD_MAP):
    """One update over `devices` devices, its metrics, and the priorities; `state` survives."""
    update = _updater(agent.update, devices, backend)
    state, metrics = update(sharding.replicate(state, sharding.mesh(devices)), batch, key)
    metrics = {name: np.asarray(x) for name, x in sharding.local(metrics).items()}
    priority = metrics.pop(PRIORITY, None)
    return sharding.local(state), metrics, priority


def same(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def differs(a, b) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(x.shape != y.shape or not np.array_equal(x, y) for x, y in leaves)
