"""Uniform replay: what is drawn, how often, and never before its successors have come."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.replay import device
from tests.rljax.replay import rows as made


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_all_rows_that_may_be_drawn_are_drawn_and_no_others(num_steps):
    rows = made.episodes(40, 3)
    buffer = device.make(24, 3, 64, 0.9, num_steps)  # 8 rows of each
    add, draw = jax.jit(buffer.add), jax.jit(functools.partial(made.draw, buffer))
    state = buffer.init(made.row_of(rows))
    for newest in range(1, 41):
        state = add(state, made.part(rows, newest - 1, newest))
        assert buffer.size(state) == 3 * min(newest, 8)
        if newest in (5, 8, 27, 40):  # unfull, just full, wrapped
            allowed = made.drawable(rows, newest, 8, num_steps)
            assert made.check(draw(state), rows, num_steps, 0.9) == allowed


def test_valid_rows_are_drawn_with_equal_probability():
    rows = made.episodes(12, 4, seed=3)
    buffer = device.make(32, 4, 8, 0.9)
    sample = made.draw(buffer, made.fill(buffer, rows, 3), keys=2_000)
    allowed = made.drawable(rows, 12, 8, 1)
    assert 14 < len(allowed) < 28  # of 28 rows with successors some are autoreset's
    _, counts = np.unique(sample.index, return_counts=True)
    assert len(counts) == len(allowed)
    mean = 16_000 / len(allowed)
    # χ² of k - 1 degrees of freedom: mean k - 1, deviation √(2 (k - 1)). Later tries are shared by
    # the 8 rows of a sample, so that counts vary somewhat more.
    degrees = len(allowed) - 1
    assert np.sum((counts - mean) ** 2 / mean) < degrees + 6 * np.sqrt(2 * degrees)


def test_nothing_can_be_sampled_before_a_row_has_its_successors():
    rows = made.episodes(12, 2)
    buffer = device.make(12, 2, 8, 0.9, 3)
    state = buffer.init(made.row_of(rows))
    for newest in range(5):
        assert buffer.can_sample(state) == (newest == 4)  # the first row and three behind it
        sample = jax.jit(buffer.sample)(state, jax.random.key(1))
        assert (sample.weight > 0).any() == (newest == 4)
        state = buffer.add(state, made.part(rows, newest, newest + 1))


def test_rows_have_no_weight_where_only_autoreset_rows_are_there():
    rows = made.make(np.zeros((4, 2)), np.ones((4, 2)), np.zeros((4, 2)))
    buffer = device.make(8, 2, 8, 0.9)
    state = made.fill(buffer, rows, 1)
    sample = buffer.sample(state, jax.random.key(0))
    assert buffer.can_sample(state)
    np.testing.assert_array_equal(sample.weight, np.zeros(8))


def test_an_episode_a_step_is_learned_from_all_the_same():
    valid = np.arange(200)[:, None] % 2 == 0  # every second row is autoreset's
    rows = made.make(np.ones((200, 1)), 1.0 - valid, valid)
    rows.observation.features[...] = (np.arange(200) % 100)[:, None, None]
    buffer = device.make(200, 1, 4096, 0.9)
    sample = buffer.sample(made.fill(buffer, rows, 50), jax.random.key(0))
    assert np.mean(np.asarray(sample.weight)) > 0.999  # 16 tries fail once in 65,536
    assert (np.asarray(sample.index)[np.asarray(sample.weight) > 0] % 2 == 0).all()


def test_the_sample_follows_from_the_key():
    rows = made.episodes(12, 2)
    buffer = device.make(24, 2, 8, 0.9)
    state = made.fill(buffer, rows, 4)
    one, same, other = (buffer.sample(state, jax.random.key(k)).index for k in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_a_cut_run_is_not_continued_and_priorities_are_not_kept():
    rows = made.episodes(12, 2)
    buffer = device.make(24, 2, 64, 0.9)
    state = buffer.cut(made.fill(buffer, rows, 4))
    assert not state.rows.valid[-1].any()
    assert buffer.update(state, jnp.array([0]), jnp.array([9.0])) is state


def test_a_replay_without_room_is_refused():
    with pytest.raises(ValueError, match="a replay of 7 rows keeps 1 of each of 4 environments"):
        device.make(7, 4, 8, 0.9)
