"""Made-up samples of replay."""

import jax
import jax.numpy as jnp

from rljax.agent import PRIORITY
from rljax.offline.outlook import KNOWS_NEXT_ACTION, NEXT_ACTION
from rljax.replay.base import Sample
from rljax.types import Box, EnvSpec, Observation
from tests.agents import updates

B = 8  # rows


def sample(spec: EnvSpec, key: jax.Array, rows: int = B) -> Sample:
    """Random rows with γ = 0.9, of which the first terminated; the last has no weight.

    Nobody knows what was done after the second.
    """
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

    def action() -> jax.Array:
        if not isinstance(spec.action, Box):
            return jax.random.randint(next(keys), (rows,), 0, spec.action.num_actions)
        low, high = jnp.array(spec.action.low)[None], jnp.array(spec.action.high)[None]
        return low + (high - low) * jax.random.uniform(next(keys), (rows, *spec.action.shape))

    taken = action()
    return Sample(
        observation(),
        taken,
        jax.random.normal(next(keys), (rows,)),
        jnp.full(rows, 0.9).at[0].set(0.0),
        observation(),
        jnp.ones(rows).at[-1].set(0.0),
        jnp.arange(rows),
        {NEXT_ACTION: action(), KNOWS_NEXT_ACTION: jnp.ones(rows).at[1].set(0.0)},
    )


def learn(agent, state, batch, key, **options):
    """`updates.learn`, with the priorities of rows apart from the metrics."""
    state, metrics = updates.learn(agent, state, batch, key, **options)
    return state, metrics, metrics.pop(PRIORITY, None)
