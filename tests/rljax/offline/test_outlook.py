import time

import numpy as np
import pytest

from rljax.offline import dataset as datasets
from rljax.offline import outlook
from rljax.offline.dataset import Dataset, Episode
from rljax.types import Box, EnvSpec, Observation, Transition

SPEC = EnvSpec("told", (1,), "float32", Box((-1.0,), (1.0,)))


def episode(rewards, *, terminated):
    steps = len(rewards)
    return Episode(
        Observation(np.arange(steps + 1, dtype=np.float32)[:, None]),
        np.linspace(0.1, 0.9, steps, dtype=np.float32)[:, None],
        np.array(rewards, np.float32),
        terminated,
        {"mark": np.arange(steps, dtype=np.float32)},
    )


@pytest.fixture
def dataset():
    return datasets.make(
        SPEC, [episode([1, 2, 4], terminated=True), episode([8], terminated=False)], "two"
    )


def test_returns_to_go_by_hand(dataset):
    # 1 + 2/2 + 4/4 = 3, 2 + 4/2 = 4, 4, the final observation; 8 of what was cut off, its final
    np.testing.assert_array_equal(outlook.returns_to_go(dataset, 0.5), [3, 4, 4, 0, 8, 0])
    np.testing.assert_array_equal(outlook.returns_to_go(dataset, 0.0), dataset.rows.reward)
    first = outlook.returns_to_go(dataset, 1.0)[dataset.starts[:-1]]
    np.testing.assert_array_equal(first, dataset.returns())


def test_returns_to_go_count_on_the_worst_behind_a_time_limit():
    made = datasets.make(
        SPEC, [episode([-1, 3], terminated=True), episode([-1, -2], terminated=False)], "two"
    )
    # least reward -2, for ever: -2 / (1 - 1/2) = -4 behind the last step of the second
    np.testing.assert_array_equal(outlook.returns_to_go(made, 0.5), [0.5, 3, 0, -3, -4, 0])
    assert outlook.least_to_come(made, 0.5) == -4
    np.testing.assert_allclose(outlook.returns_to_go(made, 1.0), [2, 3, 0, -1e30, -1e30, 0])
    np.testing.assert_array_equal(outlook.returns_to_go(made, 0.0), made.rows.reward)


def test_a_maze_that_was_never_solved_is_worth_a_failure_for_ever():
    """As in Cal-QL's own code for sparse rewards: r / (1 - γ), at every step."""
    made = datasets.make(SPEC, [episode([-5, -5, -5], terminated=False)], "maze")
    np.testing.assert_allclose(outlook.returns_to_go(made, 0.99)[:3], -500, rtol=1e-6)


def test_one_long_episode_among_many_short_ones_costs_what_they_cost_alone():
    """In steps; a position of the longest must not look at all episodes."""

    def alone(lengths):
        starts = np.concatenate([[0], np.cumsum(np.array(lengths) + 1)])
        valid = np.ones(starts[-1], bool)
        valid[starts[1:] - 1] = False
        column = valid[:, None].astype(np.float32)
        reward = column[:, 0]
        rows = Transition(Observation(column), column, reward, reward, valid, {})
        begun = time.process_time()
        found = outlook.returns_to_go(Dataset(SPEC, rows, starts), 1.0)
        took = time.process_time() - begun
        np.testing.assert_array_equal(found[starts[:-1]], lengths)
        return took

    count = 60_000
    apart = alone([count]) + alone([1] * count)
    assert alone([1] * count + [count]) < 5 * apart + 0.05


def test_the_next_action_is_of_the_same_episode_or_unknown(dataset):
    names = (outlook.NEXT_ACTION, outlook.KNOWS_NEXT_ACTION)
    told = outlook.add(dataset, names, 0.9).rows.extras
    action = dataset.rows.action
    np.testing.assert_array_equal(told["next_action"][[0, 1]], action[[1, 2]])
    np.testing.assert_array_equal(told["next_action"][2:], 0)
    np.testing.assert_array_equal(told["knows_next_action"], [1, 1, 0, 0, 0, 0])
    assert action[1] != 0  # the dataset's own rows are as they were


def test_only_what_is_asked_for_is_kept_and_what_is_not_there_is_named(dataset):
    assert set(outlook.add(dataset, ("mark",), 0.9).rows.extras) == {"mark"}
    assert not outlook.add(dataset, (), 0.9).rows.extras
    with pytest.raises(ValueError, match=r"two has no column 'log_prob', .* it has \['mark'\]"):
        outlook.add(dataset, ("log_prob",), 0.9)
