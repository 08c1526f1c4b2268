"""Changed rewards: of steps only, in datasets and in replays."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from rljax import registry
from rljax.offline import dataset
from rljax.offline.rewards import Change
from rljax.replay import device
from rljax.types import Discrete, EnvSpec, Observation, Transition

SPEC = EnvSpec("numbers", (1,), "float32", Discrete(2))


def data():
    def episode(*reward):
        seen = Observation(np.zeros((len(reward) + 1, 1), np.float32))
        action = np.zeros(len(reward), np.int32)
        return dataset.Episode(seen, action, np.float32(reward), True)

    return dataset.make(SPEC, [episode(0, 0, 1), episode(0)], "maze.npz")


def test_steps_of_a_dataset_change_and_rows_behind_them_stay():
    before = data()
    after = Change(10.0, -5.0).of_dataset(before)
    np.testing.assert_array_equal(after.rows.reward, np.float32([-5, -5, 5, 0, -5, 0]))
    np.testing.assert_array_equal(before.rows.reward, np.float32([0, 0, 1, 0, 0, 0]))
    assert after.rows.reward.dtype == np.float32
    np.testing.assert_array_equal(after.returns(), [-5, -5])
    assert after.rows.action is before.rows.action
    assert after.source == "maze.npz"
    assert after.sha256 != before.sha256


def test_without_a_change_nothing_is_copied():
    found = data()
    assert Change().of_dataset(found) is found
    buffer = device.make(8, 1, 4, 0.9)
    assert Change().of_buffer(buffer) is buffer


def test_rows_change_as_they_come_into_a_replay():
    buffer = Change(2.0, -1.0).of_buffer(device.make(8, 1, 4, 0.9))
    valid = jnp.array([[True], [True], [False]])
    reward, discount = jnp.array([[3.0], [0.0], [0.0]]), jnp.array([[1.0], [0.0], [1.0]])
    seen = Observation(jnp.zeros((3, 1, 1)))
    rows = Transition(seen, jnp.zeros((3, 1), jnp.int32), reward, discount, valid, {})
    first = Transition(Observation(jnp.zeros((1, 1))), *(x[0] for x in rows[1:-1]), {})
    state = buffer.add(buffer.init(first), rows)
    np.testing.assert_array_equal(state.rows.reward[:3, 0], [5, -1, 0])


@pytest.mark.parametrize("change", [Change(0.0), Change(math.nan), Change(1.0, math.inf)])
def test_what_would_leave_nothing_of_rewards_is_refused(change):
    with pytest.raises(ValueError, match=r"config\.reward_multiplier that is finite and not 0"):
        change.check()


@pytest.mark.parametrize("name", ["td3_bc", "iql", "cql", "cql_discrete", "rebrac"])
def test_agents_refuse_it_before_a_dataset_is_opened(name):
    agent = registry.agent_module(name)
    agent.validate(agent.Config(reward_multiplier=-2.0, reward_bias=1.0))
    with pytest.raises(ValueError, match=r"config\.reward_multiplier that is finite and not 0"):
        agent.validate(agent.Config(reward_multiplier=0.0))
