import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from agents import ppo, ppo_recurrent, sac
from rljax.nn import ensemble, heads, initializers, mlp
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


def test_random_biases_lie_within_one_over_the_root_of_the_inputs(key):
    network = nn.Sequential([mlp.MLP((64, 32), layer_norm=True), heads.ValueHead()])
    before = ensemble.init(network, 3, key, jnp.zeros(400))
    after = initializers.random_biases(before, key)
    old, new = (traverse_util.flatten_dict(params["params"]) for params in (before, after))
    assert list(new) == list(old)
    drawn = {path for path in new if path[-1] == "bias" and "LayerNorm" not in path[-2]}
    for path in new.keys() - drawn:
        np.testing.assert_array_equal(new[path], old[path])
    inputs = {64: 400, 32: 64, 1: 32}
    for path in drawn:
        copies, size = new[path].shape
        bound = inputs[size] ** -0.5
        assert (np.abs(new[path]) <= bound).all()
        assert len(np.unique(new[path])) == copies * size
        if size == 64:
            assert np.std(new[path]) == pytest.approx(bound / 3**0.5, rel=0.1)
    first, second, _ = sorted(drawn)[:3]
    assert not np.isclose(new[first][:, 0], new[second][:, 0]).any()
    other = initializers.random_biases(before, jax.random.fold_in(key, 1))
    assert not np.isclose(other["params"][first[0]][first[1]]["bias"], new[first]).any()


@pytest.mark.parametrize(
    ("module", "spec"),
    [(ppo, VECTORS), (ppo, PIXELS), (ppo_recurrent, VECTORS), (sac, REALS)],
    ids=["vectors", "pixels", "recurrent", "critics"],
)
def test_no_agent_starts_by_lapack_which_may_wait_forever(module, spec, key):
    agent = module.make(module.Config(), spec)
    assert "lapack" not in jax.jit(agent.init).lower(key).as_text()
