"""A batch of two sources: exact shares, and from each all that may be drawn, nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.replay import device, mixed
from tests.rljax.replay import rows as made

B, HELD = 8, 2  # rows of a batch, and the dataset's share of them
FAR = 10_000  # added to the names of the dataset's rows


def dataset():
    """Episodes one behind another, `[N, ...]`, the last of which has ended; and as `[N, 1]`."""
    rows = made.episodes(60, 1, seed=7)
    last = int(np.flatnonzero(~rows.valid[:, 0])[-1])
    rows = made.part(rows, 0, last + 1)
    away = rows.observation.features + FAR
    far = rows._replace(observation=rows.observation._replace(features=away))
    return jax.tree.map(lambda x: x[:, 0], far), rows


def buffer_of(num_steps=1):
    flat, column = dataset()
    online = device.make(24, 3, B - HELD, 0.9, num_steps)
    buffer = mixed.make(online, mixed.hold(flat), B, num_steps, 0.9)
    return buffer, online, column


@functools.cache
def draws(num_steps, added):
    """2,000 batches, `[2000, B, ...]`, with so many rows of each environment collected."""
    buffer, _, _ = buffer_of(num_steps)
    rows = made.episodes(40, 3)
    state, add = buffer.init(made.row_of(rows)), jax.jit(buffer.add)
    for time in range(added):
        state = add(state, made.part(rows, time, time + 1))
    keys = jax.random.split(jax.random.key(1), 2_000)
    return jax.device_get(jax.jit(jax.vmap(buffer.sample, in_axes=(None, 0)))(state, keys))


def near(sample):
    """The dataset's rows with their names as `made` gave them."""

    def back(observation):
        return observation._replace(features=observation.features - FAR)

    return sample._replace(
        observation=back(sample.observation), next_observation=back(sample.next_observation)
    )


def flat(sample, rows):
    return jax.tree.map(lambda x: x[:, rows].reshape(-1, *x.shape[2:]), sample)


@pytest.mark.parametrize("num_steps", [1, 3])
def test_each_batch_has_its_share_of_both_and_all_that_may_be_drawn(num_steps):
    sample = draws(num_steps, 30)
    from_dataset = sample.observation.features[..., 0] >= FAR
    np.testing.assert_array_equal(from_dataset, np.broadcast_to(np.arange(B) < HELD, (2_000, B)))
    np.testing.assert_array_equal(sample.weight, 1)
    column = dataset()[1]
    count = len(column.reward)
    # of the dataset every step and no other row, with what follows it there
    held = near(flat(sample, slice(0, HELD)))
    assert (held.index == held.action).all()
    assert made.check(held, column, num_steps, 0.9) == {
        (time, 0) for time in np.flatnonzero(column.valid[:, 0])
    }
    # of what was collected the rows that have their successors
    others = flat(sample, slice(HELD, B))
    rows = made.episodes(40, 3)
    assert made.check(others, rows, num_steps, 0.9) == made.drawable(rows, 30, 8, num_steps)
    place, env = np.divmod(others.index - count, 3)
    np.testing.assert_array_equal(others.action % 100 % 8, place)
    np.testing.assert_array_equal(others.action // 100, env)


def test_steps_of_the_dataset_are_equally_likely():
    index = draws(1, 30).index[:, :HELD].reshape(-1)
    _, counts = np.unique(index, return_counts=True)
    mean, degrees = len(index) / len(counts), len(counts) - 1
    assert np.sum((counts - mean) ** 2 / mean) < degrees + 5 * np.sqrt(2 * degrees)


@pytest.mark.parametrize(("num_steps", "added"), [(1, 0), (1, 1), (3, 3)])
def test_all_rows_are_the_datasets_while_none_else_can_be_drawn(num_steps, added):
    sample = draws(num_steps, added)
    np.testing.assert_array_equal(sample.weight, 1)
    everything = near(flat(sample, slice(0, B)))
    column = dataset()[1]
    seen = made.check(everything, column, num_steps, 0.9)
    assert seen == {(time, 0) for time in np.flatnonzero(column.valid[:, 0])}
    assert len(np.unique(sample.index[:, HELD:])) == len(np.unique(sample.index[:, :HELD]))


def test_it_can_always_be_sampled_and_is_as_large_as_what_was_collected():
    buffer, online, _ = buffer_of()
    rows = made.episodes(4, 3)
    state = buffer.init(made.row_of(rows))
    assert buffer.can_sample(state)
    assert buffer.size(state) == 0
    state = buffer.add(state, rows)
    assert buffer.size(state) == 12
    cut = buffer.cut(state)
    jax.tree.map(np.testing.assert_array_equal, cut.online, online.cut(state.online))
    jax.tree.map(np.testing.assert_array_equal, cut.held, state.held)
    assert buffer.update(state, jnp.array([0]), jnp.array([1.0])) is state


@pytest.mark.parametrize(
    ("fraction", "batch_size", "count"),
    [(0.5, 256, 128), (0.25, 8, 2), (0.3, 8, 2), (0.0, 8, 0), (0.9, 8, 7)],
)
def test_the_share_is_the_nearest_number_of_rows(fraction, batch_size, count):
    assert mixed.num_held(fraction, batch_size) == count


@pytest.mark.parametrize("fraction", [1.0, 0.95, -0.1, 1.5, float("nan")])
def test_a_share_that_leaves_nothing_to_what_is_collected_is_refused(fraction):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\) and leave a row"):
        mixed.num_held(fraction, 8)
