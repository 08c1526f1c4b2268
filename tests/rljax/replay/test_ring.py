"""What follows a row of the ring, by hand and against a slow reference: ends, cuts, the seam."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.replay import ring
from tests.rljax.replay import rows as made

# One environment. Row 2 terminates, row 3 is its autoreset row; row 5 is cut off by a time limit,
# row 6 holds the true final observation.
REWARD = [[1.0], [2.0], [4.0], [1e6], [8.0], [16.0], [1e6], [32.0], [64.0], [128.0]]
DISCOUNT = [[1.0], [1.0], [0.0], [1.0], [1.0], [1.0], [1.0], [1.0], [1.0], [1.0]]
VALID = [[True], [True], [True], [False], [True], [True], [False], [True], [True], [True]]
ROWS = made.make(REWARD, DISCOUNT, VALID)


def filled(rows, length, at_a_time=1):
    state = ring.init(made.row_of(rows), length)
    for start in range(0, len(rows.reward), at_a_time):
        state = ring.add(state, made.part(rows, start, start + at_a_time))
    return state


def take(state, places, num_steps, discount=0.5):
    weight = jnp.ones(len(places))
    return ring.take(state, jnp.array(places), weight, num_steps, discount)


@pytest.mark.parametrize(
    ("place", "reward", "discount", "following"),
    [
        (0, 1 + 0.5 * 2 + 0.25 * 4, 0.0, 3),  # three steps, the last of them terminated
        (1, 2 + 0.5 * 4, 0.0, 3),  # two, and then it was over
        (2, 4.0, 0.0, 3),
        (4, 8 + 0.5 * 16, 0.25, 6),  # cut off after two: bootstraps from the final observation
        (5, 16.0, 0.5, 6),
        (7, 32 + 0.5 * 64 + 0.25 * 128, 0.125, 10),
    ],
)
def test_three_steps_by_hand(place, reward, discount, following):
    more = jax.tree.map(lambda x: np.concatenate([x, x[-1:]]), ROWS)
    more.observation.features[10] = 10.0
    sample = take(filled(more, 11), [place], 3)
    assert sample.observation.features[0, 0] == sample.action[0] == place
    np.testing.assert_allclose(sample.reward, [reward], rtol=1e-6)
    np.testing.assert_allclose(sample.discount, [discount], rtol=1e-6)
    assert sample.next_observation.features[0, 0] == following
    assert sample.index[0] == place


def test_one_step_by_hand():
    sample = take(filled(ROWS, 10), [1, 2, 5], 1)
    np.testing.assert_allclose(sample.reward, [2.0, 4.0, 16.0])
    np.testing.assert_allclose(sample.discount, [0.5, 0.0, 0.5])  # a time limit is no end
    np.testing.assert_array_equal(sample.next_observation.features[:, 0], [2, 3, 6])


@pytest.mark.parametrize("at_a_time", [1, 2, 3, 5])
def test_the_newest_rows_take_the_places_of_the_oldest(at_a_time):
    rows = made.episodes(30, 2)
    state = filled(rows, 7, at_a_time)
    assert (state.size, state.cursor) == (7, 30 % 7)
    assert ring.num_rows(state) == 14
    for time in range(23, 30):  # the last 7 of 30, each where its number says
        for kept, came in zip(jax.tree.leaves(state.rows), jax.tree.leaves(rows), strict=True):
            np.testing.assert_array_equal(kept[time % 7], came[time])


def test_an_unfull_ring_knows_how_many_rows_are_there():
    rows = made.episodes(30, 2)
    state = filled(made.part(rows, 0, 4), 7, 2)
    assert (state.size, state.cursor) == (4, 4)
    assert not state.rows.valid[4:].any()


@pytest.mark.parametrize("num_steps", [1, 3])
def test_successors_are_found_across_the_end_of_the_ring(num_steps):
    rows = made.episodes(30, 3, seed=1)
    state = filled(rows, 8, 2)
    wanted = made.drawable(rows, 30, 8, num_steps)
    index = [(time % 8) * 3 + env for time, env in sorted(wanted)]
    sample = ring.take(state, jnp.array(index), jnp.ones(len(index)), num_steps, 0.9)
    assert made.check(sample, rows, num_steps, 0.9) == wanted
    assert {time for time, _ in wanted} >= {22, 23, 24}  # on both sides of the seam
    np.testing.assert_array_equal(sample.index, index)


def test_a_cut_ends_the_running_episode_without_terminating_it():
    before, after = made.part(ROWS, 7, 10), made.part(ROWS, 0, 3)
    state = ring.init(made.row_of(ROWS), 10)
    state = ring.add(ring.cut(ring.add(state, before)), after)
    # places 0, 1, 2 hold rows 7, 8, 9, and 3, 4, 5 hold 0, 1, 2 of other episodes
    sample = take(state, [0, 1, 3], 3)
    np.testing.assert_allclose(sample.reward, [32 + 0.5 * 64, 64.0, 1 + 0.5 * 2 + 0.25 * 4])
    np.testing.assert_allclose(sample.discount, [0.25, 0.5, 0.0])
    np.testing.assert_array_equal(sample.next_observation.features[:2, 0], [9, 9])
    assert not state.rows.valid[2, 0]  # its action led nowhere that was kept
    assert ring.num_rows(state) == 6


def test_a_cut_where_the_newest_row_lies_at_the_end_of_the_ring():
    state = ring.cut(filled(made.part(ROWS, 7, 10), 3))
    assert state.cursor == 0
    np.testing.assert_array_equal(state.rows.valid[:, 0], [True, True, False])


def test_what_does_not_fit_is_refused():
    assert ring.rows_per_env(17, 4, 3) == 4
    with pytest.raises(ValueError, match=r"keeps 3 of each of 4 .* its capacity 16 or more"):
        ring.rows_per_env(15, 4, 3)
    with pytest.raises(ValueError, match="10 rows do not fit into a ring of 9"):
        ring.add(ring.init(made.row_of(ROWS), 9), ROWS)


def test_every_kind_of_leaf_is_kept():
    rows = made.make([[1.0, 1.0]], [[1.0, 1.0]], [[True, True]])
    frames = {"frame": np.full((1, 2, 3, 3, 1), 200, np.uint8)}
    mask = np.array([[[True, False], [False, True]]])
    observation = rows.observation._replace(features=frames, mask=mask)
    rows = rows._replace(observation=observation, action=jnp.array([[1, 0]]))
    state = ring.add(ring.init(made.row_of(rows), 2), rows)
    sample = take(state, [1], 1)
    assert sample.action.dtype == jnp.int32
    assert sample.observation.features["frame"].dtype == jnp.uint8
    assert (sample.observation.features["frame"] == 200).all()
    np.testing.assert_array_equal(sample.observation.mask, [[False, True]])
