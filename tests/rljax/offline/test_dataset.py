"""Datasets: rows of episodes, their endings, what is refused."""

import dataclasses

import numpy as np
import pytest

from rljax.offline import dataset
from rljax.types import Box, Discrete, EnvSpec, Observation

SPEC = EnvSpec("numbers", (2,), "float32", Discrete(3))
MASKED = dataclasses.replace(SPEC, has_mask=True)
BOX = EnvSpec("box", (2,), "float32", Box((-1.0, 0.0), (1.0, 2.0)))


def episode(first=0, steps=3, terminated=True, **changes):
    features = np.arange(first, first + steps + 1, dtype=np.float32)[:, None].repeat(2, axis=1)
    made = dataset.Episode(
        Observation(features),
        np.zeros(steps, np.int32),
        np.arange(first, first + steps, dtype=np.float32),
        terminated,
        {"log_prob": np.full(steps, -0.5, np.float32)},
    )
    return made._replace(**changes)


def test_rows_are_those_of_a_rollout():
    data = dataset.make(SPEC, [episode(0, 2), episode(10, 1, terminated=False)], "here")
    rows = data.rows
    np.testing.assert_array_equal(rows.observation.features[:, 0], [0, 1, 2, 10, 11])
    np.testing.assert_array_equal(rows.valid, [True, True, False, True, False])
    np.testing.assert_array_equal(rows.discount, [1, 0, 1, 1, 1])
    np.testing.assert_array_equal(rows.reward, [0, 1, 0, 10, 0])
    np.testing.assert_array_equal(rows.extras["log_prob"], [-0.5, -0.5, 0, -0.5, 0])
    np.testing.assert_array_equal(data.starts, [0, 3, 5])
    assert (data.num_episodes, data.num_steps) == (2, 3)
    np.testing.assert_array_equal(data.returns(), [1, 10])


def test_episodes_come_back_as_they_went_in():
    went_in = [episode(0, 2), episode(10, 1, terminated=False), episode(20, 4)]
    data = dataset.make(SPEC, went_in)
    for before, after in zip(went_in, data.episodes(), strict=True):
        np.testing.assert_array_equal(before.observation.features, after.observation.features)
        np.testing.assert_array_equal(before.action, after.action)
        np.testing.assert_array_equal(before.reward, after.reward)
        np.testing.assert_array_equal(before.extras["log_prob"], after.extras["log_prob"])
        assert before.terminated == after.terminated


def test_one_large_reward_changes_no_other_return():
    rewards = [[1e20], [1, 2], [5, 5, 5], [9]]
    episodes = [episode(steps=len(x), reward=np.float32(x)) for x in rewards]
    data = dataset.make(SPEC, episodes)
    np.testing.assert_array_equal(data.returns(), [np.float32(1e20), 3, 15, 9])
    assert dataset.top(data, 0.5).returns().tolist() == [np.float32(1e20), 15]


def test_the_best_episodes_keep_their_order():
    data = dataset.make(SPEC, [episode(5, 1), episode(20, 1), episode(1, 1), episode(9, 1)])
    assert dataset.top(data, 0.5).returns().tolist() == [20, 9]
    assert dataset.top(data, 0.01).returns().tolist() == [20]
    assert dataset.top(data, 1.0).num_episodes == 4
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="share of episodes"):
            dataset.top(data, share)


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_moments_do_not_depend_on_the_parts_that_are_looked_at(monkeypatch, rows):
    drawn = np.random.default_rng(0).normal(3, 2, (8, 2)).astype(np.float32)
    parts = [episode(steps=7, observation=Observation(drawn + shift)) for shift in (0, 1)]
    monkeypatch.setattr(dataset, "_PART", rows)
    mean, variance = dataset.moments(dataset.make(SPEC, parts))
    seen = np.concatenate([drawn[:-1], drawn[:-1] + 1]).astype(np.float64)
    np.testing.assert_allclose(mean, seen.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(variance, seen.var(axis=0), rtol=1e-5)


def test_moments_leave_final_observations_out():
    mean, variance = dataset.moments(dataset.make(SPEC, [episode(0, 2), episode(1000, 1)]))
    np.testing.assert_allclose(mean, [1001 / 3] * 2, rtol=1e-6)
    np.testing.assert_allclose(variance, [np.var([0, 1, 1000])] * 2, rtol=1e-6)
    still = episode(0, 3)
    still.observation.features[:, 1] = 1000.1
    _, variance = dataset.moments(dataset.make(SPEC, [still]))
    assert variance[1] == 1  # or its least change would drown all
    pixels = EnvSpec("pixels", (1,), "uint8", Discrete(3))
    frames = episode(observation=Observation(np.zeros((4, 1), np.uint8)))
    with pytest.raises(ValueError, match="no plain vectors"):
        dataset.moments(dataset.make(pixels, [frames]))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"reward": np.zeros(0, np.float32)}, "episode 1 has no step"),
        ({"reward": np.array([0, np.nan, 0], np.float32)}, "the reward nan in step 1"),
        ({"action": np.zeros(2, np.int32)}, "2 of action and 3 rewards"),
        ({"action": np.array([0, 3, 0], np.int32)}, "the action 3 in step 1"),
        ({"action": np.array([0, 0, -1], np.int32)}, "the action -1 in step 2"),
        ({"observation": Observation(np.zeros((3, 2), np.float32))}, "there must be one more"),
        ({"observation": Observation(np.zeros((4, 3), np.float32))}, "shape"),
        ({"observation": Observation(np.zeros((4, 2)))}, "as float64, not as float32"),
        ({"observation": Observation(np.full((4, 2), np.inf, np.float32))}, "not finite in row 0"),
        (
            {"observation": Observation(np.zeros((4, 2), np.float32), np.ones((4, 3), bool))},
            "has masks",
        ),
        ({"extras": {}}, "beside its steps"),
        ({"extras": {"log_prob": np.zeros(2, np.float32)}}, "2 of log_prob and 3 rewards"),
        ({"extras": {"log_prob": np.float32([0, -np.inf, 0])}}, "the log_prob -inf in step 1, of"),
        ({"extras": {"log_prob": np.float32([0, 0, 0.1])}}, r"outside \(0, 1\]"),
        ({"extras": {"place": np.float32([np.nan, 0, 0])}}, "the place nan in step 0, no finite"),
    ],
)
def test_what_is_wrong_is_told_with_its_episode(changes, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        dataset.make(SPEC, [episode(), episode(**changes)], "log.parquet")
    assert str(error.value).startswith("log.parquet: episode 1 ")


def test_no_episode_is_no_dataset():
    with pytest.raises(ValueError, match=r"log\.parquet has no episode"):
        dataset.make(SPEC, [], "log.parquet")


def test_a_forbidden_action_is_refused():
    mask = np.ones((4, 3), bool)
    mask[1, 2] = False
    seen = episode().observation._replace(mask=mask)
    made = episode(observation=seen, action=np.array([2, 1, 2], np.int32))
    assert dataset.make(MASKED, [made]).num_steps == 3
    with pytest.raises(ValueError, match="the action 2 in step 1, which is not allowed"):
        dataset.make(MASKED, [made._replace(action=np.array([2, 2, 2], np.int32))])
    with pytest.raises(ValueError, match="lacks masks"):
        dataset.make(MASKED, [episode()])


def test_a_box_has_bounds():
    inside = np.array([[-1, 0], [1, 2], [0, 1]], np.float32)
    assert dataset.make(BOX, [episode(action=inside)]).rows.action.shape == (4, 2)
    for wrong in (np.float32(2.5), np.float32(np.nan)):
        outside = inside.copy()
        outside[2, 1] = wrong
        with pytest.raises(ValueError, match="in step 2, which is not allowed"):
            dataset.make(BOX, [episode(action=outside)])
    with pytest.raises(ValueError, match="actions of shape"):
        dataset.make(BOX, [episode(action=inside[:, :1])])
