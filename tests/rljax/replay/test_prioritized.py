"""Prioritized replay against NumPy: who is drawn how often, weights, updates, new and old rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.replay import prioritized
from tests.rljax.replay import rows as made

ALPHA, BETA = 0.5, 0.4
EPSILON = 1e-6


def make(batch_size=64, num_steps=1, capacity=24, num_envs=3, **exponents):
    exponents = {"priority_exponent": ALPHA, "importance_exponent": BETA} | exponents
    return prioritized.make(capacity, num_envs, batch_size, 0.9, num_steps, **exponents)


@pytest.mark.parametrize(("at_a_time", "num_steps"), [(1, 1), (2, 3), (5, 3)])
def test_new_rows_are_alike_once_their_successors_are_there(at_a_time, num_steps):
    rows = made.episodes(40, 3)
    buffer = make(num_steps=num_steps)
    add, state = jax.jit(buffer.add), buffer.init(made.row_of(rows))
    for newest in range(at_a_time, 41, at_a_time):
        state = add(state, made.part(rows, newest - at_a_time, newest))
        allowed = made.drawable(rows, newest, 8, num_steps)
        powers = np.zeros(24)
        for time, env in allowed:
            powers[(time % 8) * 3 + env] = 1.0
        np.testing.assert_array_equal(state.powers[0][:24], powers)
    sample = made.draw(buffer, state)
    assert made.check(sample, rows, num_steps, 0.9) == allowed
    np.testing.assert_array_equal(sample.weight, np.ones(20 * 64))  # all alike


@pytest.fixture
def learned():
    """16 rows, all drawable, with errors 1, 4, 9, ... : powers are 1, 2, 3, ... for α = ½."""
    rows = made.make(np.zeros((9, 2)), np.ones((9, 2)), np.ones((9, 2)))
    buffer = make(batch_size=136, capacity=18, num_envs=2)
    state = made.fill(buffer, rows, 3)
    errors = np.arange(1, 17, dtype=np.float32) ** 2
    return rows, buffer, jax.jit(buffer.update)(state, jnp.arange(16), jnp.asarray(errors))


def test_rows_are_drawn_in_proportion_to_the_power_of_their_error(learned):
    _, buffer, state = learned
    np.testing.assert_allclose(state.powers[0][:16], np.arange(1, 17), rtol=1e-5)
    index = np.asarray(buffer.sample(state, jax.random.key(0)).index)
    # 136 = 1 + 2 + ... + 16 equal shares: row i gets i + 1 of them, all but the two at its edges
    # for certain
    counts = np.bincount(index, minlength=16)
    assert counts.sum() == 136
    assert (np.abs(counts - np.arange(1, 17)) <= 1).all()
    index = np.asarray(made.draw(buffer, state, keys=500).index)
    np.testing.assert_allclose(np.bincount(index, minlength=16) / 500, np.arange(1, 17), rtol=0.02)


def test_weights_undo_the_priorities_in_part_and_the_largest_is_1(learned):
    _, buffer, state = learned
    sample = buffer.sample(state, jax.random.key(0))
    power = np.asarray(sample.index) + 1.0
    weight = (16 * power / 136) ** -BETA  # (N · P)^-β
    np.testing.assert_allclose(sample.weight, weight / weight.max(), rtol=1e-5)
    assert sample.weight.max() == 1.0


def test_with_full_importance_a_weighted_sample_is_a_uniform_one(learned):
    _, _, state = learned
    buffer = make(batch_size=136, capacity=18, num_envs=2, importance_exponent=1.0)
    sample = made.draw(buffer, state, keys=500)
    mass = np.bincount(sample.index, weights=np.asarray(sample.weight), minlength=16)
    np.testing.assert_allclose(mass / mass.mean(), np.ones(16), rtol=0.05)


def test_without_exponents_it_is_uniform_replay():
    rows = made.make(np.zeros((9, 2)), np.ones((9, 2)), np.ones((9, 2)))
    buffer = make(64, capacity=18, num_envs=2, priority_exponent=0.0, importance_exponent=0.0)
    state = buffer.update(made.fill(buffer, rows, 3), jnp.arange(16), jnp.arange(16.0))
    np.testing.assert_array_equal(state.powers[0][:16], np.ones(16))
    np.testing.assert_array_equal(buffer.sample(state, jax.random.key(0)).weight, np.ones(64))


def test_of_a_row_that_was_drawn_twice_the_larger_error_is_kept(learned):
    _, buffer, state = learned
    state = buffer.update(state, jnp.array([3, 5, 3]), jnp.array([0.25, 0.0, -0.01]))
    # √0.25, not √0.01 nor what was there; a row without error may come again: √ε
    np.testing.assert_allclose(state.powers[0][jnp.array([3, 5])], [0.5, 1e-3], rtol=1e-3)


def test_new_rows_get_the_largest_power_that_there_ever_was(learned):
    rows, buffer, state = learned
    np.testing.assert_allclose(state.largest, 16.0, rtol=1e-6)
    state = buffer.update(state, jnp.arange(16), jnp.full(16, 0.04))  # the largest is history
    state = buffer.add(state, made.part(rows, 0, 2))  # over rows 0 and 1; 8 and 0 are ready now
    expected = np.full(18, 0.2)
    expected[[16, 17, 0, 1]] = 16.0  # places 8 and 0
    expected[[2, 3]] = 0.0  # place 1, the newest
    np.testing.assert_allclose(state.powers[0][:18], expected, rtol=1e-4)


def test_a_cut_row_is_never_drawn():
    rows = made.make(np.zeros((4, 2)), np.ones((4, 2)), np.ones((4, 2)))
    buffer = make(capacity=18, num_envs=2)
    state = buffer.add(buffer.cut(made.fill(buffer, rows, 2)), rows)
    powers = np.asarray(state.powers[0][:18]).reshape(9, 2)
    np.testing.assert_array_equal(powers[:, 0], [1, 1, 1, 0, 1, 1, 1, 0, 0])  # 3: cut, 7: newest
    assert buffer.size(state) == 16


def test_where_nothing_can_be_drawn_nothing_has_weight_nor_priority():
    rows = made.episodes(12, 2)
    buffer = make(8, capacity=18, num_envs=2)
    state = buffer.init(made.row_of(rows))
    assert not buffer.can_sample(state)
    sample = jax.jit(buffer.sample)(state, jax.random.key(0))
    np.testing.assert_array_equal(sample.weight, np.zeros(8))
    state = buffer.update(state, sample.index, jnp.ones(8))
    assert not buffer.can_sample(state)
    assert not any(level.any() for level in state.powers)
    assert state.largest == 1.0


def test_a_rollout_that_does_not_fit_is_refused():
    rows = made.episodes(8, 3)
    buffer = make()
    with pytest.raises(ValueError, match=r"8 rows and 1 to wait for .* a ring of 8"):
        buffer.add(buffer.init(made.row_of(rows)), rows)
