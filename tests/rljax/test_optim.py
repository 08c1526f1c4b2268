"""The steps of the two optimizers, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import optim
from rljax.optim import Optimizer


def steps(kind, gradients, *, epsilon=0.1, rmsprop_decay=0.75, max_grad_norm=100.0):
    """What comes out for each gradient of one parameter, in turn."""
    optimizer = optim.make(
        kind, epsilon=epsilon, rmsprop_decay=rmsprop_decay, max_grad_norm=max_grad_norm
    )
    state, out = optimizer.init(jnp.zeros(1)), []
    for gradient in gradients:
        step, state = optimizer.update(jnp.array([gradient]), state)
        out.append(float(np.asarray(step)[0]))
    return out


def test_rmsprop_divides_by_the_root_of_the_running_mean_square_plus_epsilon():
    # mean square: 0.25 · 2² = 1, then 0.75 · 1 + 0.25 · 3² = 3
    # steps: 2 / (√1 + 0.1) = 1.818182, then 3 / (√3 + 0.1) = 1.637506
    np.testing.assert_allclose(
        steps(Optimizer.RMSPROP, [2.0, 3.0]), [1.818182, 1.637506], rtol=1e-5
    )


def test_the_decay_is_the_share_that_stays():
    # 0.9 stays: mean square 0.1 · 2² = 0.4; step 2 / (√0.4 + 0.1) = 2.730541
    np.testing.assert_allclose(
        steps(Optimizer.RMSPROP, [2.0], rmsprop_decay=0.9), [2.730541], rtol=1e-5
    )


def test_adam_divides_the_momentum_by_the_size_each_without_its_bias_to_0():
    # m: 0.2 / 0.1 = 2; v: 0.004 / 0.001 = 4; step 2 / (2 + 0.1) = 0.952381
    # m: (0.9 · 0.2 + 0.1 · 3) / 0.19 = 2.526316; v: (0.999 · 0.004 + 0.009) / 0.001999 = 6.501251
    # step 2.526316 / (2.549755 + 0.1) = 0.953415
    np.testing.assert_allclose(steps(Optimizer.ADAM, [2.0, 3.0]), [0.952381, 0.953415], rtol=1e-4)


@pytest.mark.parametrize("kind", Optimizer)
def test_long_gradients_are_scaled_down_as_one_vector_before_anything_else(kind):
    def step(gradient, limit):
        optimizer = optim.make(kind, epsilon=1.0, rmsprop_decay=0.5, max_grad_norm=limit)
        out, _ = optimizer.update(gradient, optimizer.init(gradient))
        return np.concatenate(jax.tree.leaves(out))

    gradient = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}  # of norm 5
    shorter = {"a": jnp.array([0.6]), "b": jnp.array([0.8])}
    np.testing.assert_allclose(step(gradient, 1.0), step(shorter, 100.0), rtol=1e-6)
    assert (abs(step(gradient, 1.0) - step(gradient, 100.0)) > 0.01).all()


def test_each_part_of_the_parameters_may_have_a_rate_of_its_own():
    params = {"a": jnp.array([1.0]), "b": {"c": jnp.array([2.0])}, "nothing": None}
    steps = {"a": jnp.array([4.0]), "b": {"c": jnp.array([8.0])}, "nothing": None}
    got = optim.descended(params, steps, {"a": 0.5, "b": jnp.float32(0.25), "nothing": 1.0})
    # 1 - 0.5 · 4, and 2 - 0.25 · 8
    assert got == {"a": jnp.array([-1.0]), "b": {"c": jnp.array([0.0])}, "nothing": None}
    assert optim.descended(params, steps, 0.25)["a"] == 0  # one for all
