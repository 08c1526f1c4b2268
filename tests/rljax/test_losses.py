import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import losses

EPSILON = 0.2
RATIO = jnp.array([1.5, 1.5, 0.5, 0.5, 1.1, 0.9])
ADVANTAGE = jnp.array([2.0, -2.0, 2.0, -2.0, 3.0, -3.0])


def test_clipped_surrogate_by_hand():
    loss = losses.clipped_surrogate(jnp.log(RATIO), ADVANTAGE, EPSILON)
    expected = [
        -2.4,  # -min(1.5·2, 1.2·2): clipped
        3.0,  # -min(1.5·-2, 1.2·-2): the worse, unclipped; a max would give 2.4
        -1.0,  # -min(0.5·2, 0.8·2): unclipped; a max would give -1.6
        1.6,  # -min(0.5·-2, 0.8·-2): clipped
        -3.3,  # -1.1·3: inside
        2.7,  # 0.9·3: inside
    ]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_the_clip_stops_the_gradient_on_its_own_side_only():
    slope = jax.grad(lambda x: losses.clipped_surrogate(x, ADVANTAGE, EPSILON).sum())
    # d(-ρA)/d log ρ = -ρA where the clip does not bind, exactly 0 where it does
    expected = [0.0, 3.0, -1.0, 0.0, -3.3, 2.7]
    gradient = slope(jnp.log(RATIO))
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    assert gradient[0] == 0
    assert gradient[3] == 0


@pytest.mark.parametrize("log_ratio", [20.0, 100.0, 1e4])
def test_the_gradient_stays_zero_however_far_beyond_the_clip(log_ratio):
    # exp overflows at 89, and 0 · inf is NaN; a squashed Gaussian with a saturated mean gets there
    number, slope = jax.value_and_grad(losses.clipped_surrogate)(
        jnp.float32(log_ratio), jnp.float32(1.0), EPSILON
    )
    np.testing.assert_allclose(number, -1.2, rtol=1e-6)
    assert slope == 0


def test_the_surrogate_at_ratio_1_is_minus_the_advantage_with_its_full_slope():
    zero = jnp.zeros(2)
    advantage = jnp.array([2.0, -3.0])
    np.testing.assert_array_equal(losses.clipped_surrogate(zero, advantage, EPSILON), [-2.0, 3.0])
    slope = jax.grad(lambda x: losses.clipped_surrogate(x, advantage, EPSILON).sum())(zero)
    np.testing.assert_array_equal(slope, [-2.0, 3.0])  # the policy gradient: -A ∇log π


def test_clipped_value_by_hand():
    value = jnp.array([3.0, 3.0, 1.1, -1.0])
    old = jnp.array([1.0, 1.0, 1.0, 1.0])
    target = jnp.array([4.0, 1.0, 2.0, 0.0])
    loss = losses.clipped_value(value, old, target, 0.5)
    expected = [
        3.125,  # V near = 1.5: ½ max((3-4)², (1.5-4)²) = 6.25/2; a min would give 0.5
        2.0,  # ½ max((3-1)², (1.5-1)²) = 4/2
        0.405,  # inside the clip both are (1.1-2)²: 0.81/2
        0.5,  # V near = 0.5: ½ max((-1-0)², (0.5-0)²) = 1/2
    ]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_a_value_that_moved_too_far_towards_its_target_gets_no_gradient():
    slope = jax.grad(lambda v: losses.clipped_value(v, jnp.ones(3), jnp.full(3, 4.0), 0.5).sum())
    # V = 3: (1.5-4)² is the larger and does not depend on V; V = 1.1 inside: V - G = -2.9;
    # V = 0, moved away from the target: (0-4)² > (0.5-4)², so V - G = -4
    np.testing.assert_allclose(slope(jnp.array([3.0, 1.1, 0.0])), [0.0, -2.9, -4.0], rtol=1e-6)


def test_a_wide_clip_is_none():
    value, old, target = jnp.array([3.0, -1.0]), jnp.zeros(2), jnp.array([1.0, 1.0])
    loss = losses.clipped_value(value, old, target, 1e6)
    np.testing.assert_allclose(loss, [2.0, 2.0])  # ½(3-1)², ½(-1-1)²


@pytest.mark.parametrize("loss", [losses.clipped_surrogate, losses.clipped_value])
def test_losses_refuse_a_column_where_a_row_is_due(loss):
    row, column = jnp.zeros(3), jnp.zeros((3, 1))
    arguments = (
        (row, column, EPSILON) if loss is losses.clipped_surrogate else (row, row, column, EPSILON)
    )
    with pytest.raises(TypeError):
        loss(*arguments)


def test_huber_is_a_parabola_inside_and_a_line_outside():
    error = jnp.array([-3.0, -2.0, -0.5, 0.0, 1.0, 4.0])
    # ½e² up to 2; 2(|e| - 1) from there on
    np.testing.assert_allclose(losses.huber(error, 2.0), [4.0, 2.0, 0.125, 0.0, 0.5, 6.0])
    slope = jax.grad(lambda x: losses.huber(x, 2.0).sum())(error)
    np.testing.assert_allclose(slope, [-2.0, -2.0, -0.5, 0.0, 1.0, 2.0])
