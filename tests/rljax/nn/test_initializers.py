import jax
import numpy as np
import pytest
from flax import linen as nn

from agents import ppo, ppo_recurrent, sac
from rljax.nn import initializers
from rljax.types import Box, Discrete, EnvSpec

VECTORS = EnvSpec("vectors", (3,), "float32", Discrete(4))
PIXELS = EnvSpec("pixels", (84, 84, 4), "uint8", Discrete(4))
REALS = EnvSpec("reals", (3,), "float32", Box((-1.0, -1.0), (1.0, 1.0)))


@pytest.mark.parametrize("shape", [(4, 64), (64, 64), (64, 2), (3, 3, 5, 7), (2, 2, 1, 9)])
def test_the_numbers_are_those_of_jax(shape, key):
    expected = nn.initializers.orthogonal(1.5)(key, shape)
    weights = initializers.orthogonal(1.5)(key, shape)
    assert weights.shape == shape
    np.testing.assert_allclose(weights, expected, atol=1e-5)


def test_large_layers_stay_orthogonal_to_the_last_row(key):
    weights = initializers.orthogonal()(key, (300, 256))
    np.testing.assert_allclose(weights.T @ weights, np.eye(256), atol=1e-5)


def test_copies_in_a_map_are_those_of_each_alone(key):
    keys = jax.random.split(key, 3)
    init = initializers.orthogonal()
    together = jax.vmap(lambda key: init(key, (6, 5)))(keys)
    np.testing.assert_allclose(together, [init(key, (6, 5)) for key in keys], atol=1e-6)


@pytest.mark.parametrize(
    ("module", "spec"),
    [(ppo, VECTORS), (ppo, PIXELS), (ppo_recurrent, VECTORS), (sac, REALS)],
    ids=["vectors", "pixels", "recurrent", "critics"],
)
def test_no_agent_starts_by_lapack_which_may_wait_forever(module, spec, key):
    agent = module.make(module.Config(), spec)
    assert "lapack" not in jax.jit(agent.init).lower(key).as_text()
