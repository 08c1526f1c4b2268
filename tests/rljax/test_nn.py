import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import distributions
from rljax.nn import policies
from rljax.nn.heads import GaussianHead, LinearHead, ValueHead
from rljax.nn.mlp import MLP, Activation, dense
from rljax.nn.policies import Actor, BoxPolicy
from rljax.types import Box, Discrete, MultiDiscrete


def test_dense_starts_orthogonal_with_its_gain_and_no_bias(key):
    params = dense(5, gain=3.0).init(key, jnp.zeros(8))["params"]
    kernel = params["kernel"]  # [8, 5]: its columns are orthogonal and of length 3
    np.testing.assert_allclose(kernel.T @ kernel, 9 * np.eye(5), atol=1e-5)
    np.testing.assert_array_equal(params["bias"], np.zeros(5))


def test_hidden_layers_start_with_gain_root_2(key):
    params = MLP((6, 4)).init(key, jnp.zeros(9))["params"]
    assert {name: layer["kernel"].shape for name, layer in params.items()} == {
        "Dense_0": (9, 6),
        "Dense_1": (6, 4),
    }
    for layer in params.values():
        size = layer["kernel"].shape[1]
        gram = layer["kernel"].T @ layer["kernel"]
        np.testing.assert_allclose(gram, 2 * np.eye(size), atol=1e-5)
        assert not layer["bias"].any()


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        # the layers halve and add 1: 1 -> f(1.5) -> f(f(1.5)/2 + 1), and -5 -> f(-1.5) -> ...
        (Activation.RELU, [1.75, 1.0]),
        (Activation.TANH, [math.tanh(1 + math.tanh(1.5) / 2), math.tanh(1 + math.tanh(-1.5) / 2)]),
        (Activation.ELU, [1.75, 1 + (math.exp(-1.5) - 1) / 2]),
    ],
)
def test_mlp_activates_every_layer_the_last_one_too(activation, expected):
    layer = {"kernel": jnp.full((1, 1), 0.5), "bias": jnp.ones(1)}
    params = {"params": {"Dense_0": layer, "Dense_1": layer}}
    y = MLP((1, 1), activation).apply(params, jnp.array([[1.0], [-5.0]]))
    np.testing.assert_allclose(y[:, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("activation", list(Activation))
def test_every_activation_exists(activation, key):
    y, _ = MLP((3,), activation).init_with_output(key, jnp.ones((2, 4)))
    assert np.isfinite(y).all()


def test_mlp_without_layers_is_the_identity(key):
    x = jnp.ones((2, 4))
    np.testing.assert_array_equal(MLP(()).init_with_output(key, x)[0], x)


def test_value_head_gives_one_number_a_row(key):
    features = jax.random.normal(key, (5, 3, 4))
    values, params = ValueHead().init_with_output(key, features)
    assert values.shape == (5, 3)
    kernel = params["params"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(jnp.linalg.norm(kernel), 1.0, rtol=1e-6)  # gain 1
    np.testing.assert_allclose(values, (features @ kernel)[..., 0], rtol=1e-5, atol=1e-6)


def test_linear_head_starts_near_uniform_with_a_small_gain(key):
    features = jnp.ones((7, 64))
    logits, params = LinearHead(3, gain=0.01).init_with_output(key, features)
    assert logits.shape == (7, 3)
    lengths = jnp.linalg.norm(params["params"]["Dense_0"]["kernel"], axis=0)
    np.testing.assert_allclose(lengths, 0.01, rtol=1e-5)
    assert jnp.abs(logits).max() <= 0.01 * 8  # gain times the length of the features


def test_gaussian_head_has_deviations_that_do_not_depend_on_the_features(key):
    head = GaussianHead(2, gain=0.01, initial_log_scale=-0.5)
    (mean, log_scale), params = head.init_with_output(key, jnp.ones((7, 4)))
    assert mean.shape == (7, 2)
    np.testing.assert_array_equal(log_scale, [-0.5, -0.5])
    changed = {"params": {**params["params"], "log_scale": jnp.array([1.0, 2.0])}}
    other_mean, other_scale = head.apply(changed, jnp.ones((7, 4)))
    np.testing.assert_array_equal(other_mean, mean)
    np.testing.assert_array_equal(other_scale, [1.0, 2.0])


BOX = Box((-2.0, -1.0), (2.0, 3.0))


@pytest.mark.parametrize(
    ("action", "kind", "number"),
    [
        (Discrete(4), distributions.Categorical, jnp.int32),
        (MultiDiscrete((2, 3)), distributions.Joint, jnp.int32),
        (BOX, distributions.Normal, jnp.float32),
    ],
)
def test_every_action_space_gets_its_distribution(action, kind, number, key):
    actor = Actor(MLP((8,)), action, 0.01, 0.0)
    outputs, _ = actor.init_with_output(key, jnp.ones((5, 3)))
    distribution = policies.distribution(action, BoxPolicy.NORMAL, outputs, None)
    assert isinstance(distribution, kind)
    draws = distribution.sample(key)
    assert draws.shape == (5, *action.shape)
    assert draws.dtype == number
    assert distribution.log_prob(draws).shape == distribution.entropy().shape == (5,)


def test_multi_discrete_logits_and_masks_are_cut_alike():
    outputs = jnp.log(jnp.array([1.0, 3.0, 1.0, 2.0, 5.0]))
    mask = jnp.array([True, True, True, True, False])
    joint = policies.distribution(MultiDiscrete((2, 3)), BoxPolicy.NORMAL, outputs, mask)
    probabilities = joint.parameters()["probabilities"]
    np.testing.assert_allclose(probabilities, [1 / 4, 3 / 4, 1 / 3, 2 / 3, 0], rtol=1e-6)
    np.testing.assert_allclose(joint.log_prob(jnp.array([1, 0])), math.log(1 / 4), rtol=1e-5)


def test_discrete_masks_are_obeyed():
    mask = jnp.array([False, True, True])
    distribution = policies.distribution(Discrete(3), BoxPolicy.NORMAL, jnp.zeros(3), mask)
    np.testing.assert_allclose(distribution.parameters()["probabilities"], [0, 0.5, 0.5])


def test_tanh_normal_is_stretched_into_the_bounds_of_the_box():
    outputs = (jnp.array([[0.0, 0.0], [30.0, -30.0]]), jnp.zeros(2))
    distribution = policies.distribution(BOX, BoxPolicy.TANH_NORMAL, outputs, None)
    assert isinstance(distribution, distributions.TanhNormal)
    # the middle of each, then the ends
    np.testing.assert_allclose(distribution.mode(), [[0.0, 1.0], [2.0, -1.0]], atol=1e-5)
    assert distribution.entropy().shape == (2,)
