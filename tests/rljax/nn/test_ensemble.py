import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rljax.nn import ensemble

NETWORK = nn.Sequential([nn.Dense(4), nn.tanh, nn.Dense(3)])
X = jnp.array([[0.5, -1.0], [2.0, 0.1]])


def test_each_copy_has_parameters_of_its_own_and_answers_as_if_alone(key):
    params = ensemble.init(NETWORK, 2, key, X)
    outputs = ensemble.apply(NETWORK, params, X)
    assert outputs.shape == (2, 2, 3)
    for copy in range(2):
        alone = jax.tree.map(lambda x, copy=copy: x[copy], params)
        np.testing.assert_allclose(outputs[copy], NETWORK.apply(alone, X), rtol=1e-5)
    assert np.abs(outputs[0] - outputs[1]).max() > 0.1


def test_the_gradient_of_one_copy_does_not_reach_the_other(key):
    params = ensemble.init(NETWORK, 2, key, X)
    gradient = jax.grad(lambda params: ensemble.apply(NETWORK, params, X)[0].sum())(params)
    for leaf in jax.tree.leaves(gradient):
        assert leaf[0].any()
        assert not leaf[1].any()
