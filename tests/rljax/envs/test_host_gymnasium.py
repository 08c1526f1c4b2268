import gymnasium
import numpy as np
import pytest

from rljax.envs import host_gymnasium
from rljax.types import Box, Discrete, MultiDiscrete


def test_steps_are_gymnasiums_own():
    env = host_gymnasium.make("CartPole-v1", 3, seed=5)
    single = gymnasium.make("CartPole-v1")
    expected, _ = single.reset(seed=6)  # of environment 1
    np.testing.assert_array_equal(env.reset().features[1], expected)
    for action in (0, 1, 1):
        timestep = env.step(np.full(3, action, np.int32))
        expected, reward, _, _, _ = single.step(action)
        np.testing.assert_array_equal(timestep.observation.features[1], expected)
        assert timestep.reward[1] == reward
        assert timestep.reward.dtype == np.float32


def test_a_seed_decides_the_first_reset_only():
    one, same, other = (host_gymnasium.make("CartPole-v1", 2, seed=s) for s in (0, 0, 2))
    first = one.reset().features
    np.testing.assert_array_equal(same.reset().features, first)
    assert (other.reset().features != first).all()
    again = one.reset().features
    assert (again != first).all()
    np.testing.assert_array_equal(same.reset().features, again)


def test_arrays_are_the_callers_to_keep():
    env = host_gymnasium.make("Pendulum-v1", 2, seed=0)
    kept = [env.reset().features]
    copies = [kept[0].copy()]
    for _ in range(20):
        kept.append(env.step(np.ones((2, 1), np.float32)).observation.features)
        copies.append(kept[-1].copy())
    np.testing.assert_array_equal(kept, copies)


def test_taxi_gives_masks_beside_its_observation():
    env = host_gymnasium.make("Taxi-v4", 4, seed=0)
    observation = env.reset()
    assert env.spec.action == Discrete(6)
    assert env.spec.observation_shape == (500,)
    assert (observation.features.sum(axis=1) == 1).all()
    walls = 0
    for _ in range(10):
        assert observation.mask.shape == (4, 6)
        assert observation.mask.dtype == bool
        blocked = observation.mask.argmin(axis=1).astype(np.int32)
        masked = ~observation.mask.all(axis=1)
        following = env.step(blocked).observation
        # a masked move is one that changes nothing
        np.testing.assert_array_equal(following.features[masked], observation.features[masked])
        walls += masked.sum()
        observation = env.step(following.mask.argmax(axis=1).astype(np.int32)).observation
    assert walls > 20


def test_masks_come_along_on_the_row_that_restarts():
    env = host_gymnasium.make("Taxi-v4", 2, seed=0, options={"max_episode_steps": 2})
    env.reset()
    for i in range(6):
        timestep = env.step(np.zeros(2, np.int32))
        assert timestep.truncated.all() == (i % 3 == 1)
        assert timestep.observation.mask.any(axis=1).all()
        assert not timestep.observation.mask.all()


Binary = gymnasium.spaces.Discrete(2)


class MaskedChain(gymnasium.Env):
    """Dict observations with a mask; two components."""

    observation_space = gymnasium.spaces.Dict(
        {
            "action_mask": gymnasium.spaces.MultiBinary(5),
            "place": gymnasium.spaces.Discrete(3),
            "velocity": gymnasium.spaces.Box(-1, 1, (2,), np.float64),
        }
    )
    action_space = gymnasium.spaces.MultiDiscrete([2, 3])

    def observe(self, place):
        mask = np.array([1, 0, 1, 1, 0], np.int8)
        return {"action_mask": mask, "place": place, "velocity": np.array([0.25, -0.5])}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(0), {}

    def step(self, action):
        return self.observe(int(action[1])), float(action[0]), False, False, {}


@pytest.fixture
def _masked_chain():
    gymnasium.register("MaskedChain-v0", MaskedChain, max_episode_steps=10)
    yield
    gymnasium.registry.pop("MaskedChain-v0")


@pytest.mark.usefixtures("_masked_chain")
def test_dict_observations_with_a_mask():
    env = host_gymnasium.make("MaskedChain-v0", 2, seed=0)
    observation = env.reset()
    assert env.spec.action == MultiDiscrete((2, 3))
    assert env.spec.max_episode_steps == 10
    assert observation.features.tolist() == [[1, 0, 0, 0.25, -0.5]] * 2
    assert observation.mask.tolist() == [[True, False, True, True, False]] * 2
    timestep = env.step(np.array([[1, 2], [0, 1]], np.int32))
    assert timestep.reward.tolist() == [1, 0]
    assert timestep.observation.features[:, :3].tolist() == [[0, 0, 1], [0, 1, 0]]


def test_actions_are_clipped_at_the_border():
    env, twin = (host_gymnasium.make("Pendulum-v1", 1, seed=0) for _ in range(2))
    assert env.spec.action == Box((-2.0,), (2.0,))
    env.reset()
    twin.reset()
    far, at_bound = (
        env.step(np.array([[9.0]], np.float32)),
        twin.step(np.array([[2.0]], np.float32)),
    )
    assert far.reward == at_bound.reward
    np.testing.assert_array_equal(far.observation.features, at_bound.observation.features)
    assert env.xla() is None


@pytest.mark.usefixtures("_masked_chain")
def test_unfit_actions_name_the_environment(monkeypatch):
    monkeypatch.setattr(MaskedChain, "action_space", gymnasium.spaces.Dict({"a": Binary}))
    with pytest.raises(ValueError, match=r"MaskedChain-v0 cannot be used: its actions are Dict"):
        host_gymnasium.make("MaskedChain-v0", 1, seed=0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "CartPoleX-v1"}, "no environment 'CartPoleX-v1'; near it: CartPole-v1"),
        ({"name": "CartPole-v9"}, "near it: CartPole-v"),
        ({"num_envs": 0}, "num_envs must be at least 1, not 0"),
        ({"seed": -1}, "seed must be 0 or more, not -1"),
        ({"options": {"color": "red"}}, "refuses CartPole-v1 with .*color"),
        ({"options": {"max_episode_steps": 0}}, "refuses CartPole-v1 with .*max_episode_steps"),
    ],
)
def test_wrong_arguments_get_one_sentence(arguments, sentence):
    arguments = {"name": "CartPole-v1", "num_envs": 2, "seed": 0} | arguments
    with pytest.raises(ValueError, match=sentence) as caught:
        host_gymnasium.make(**arguments)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch):
    def refuse(*args, **kwargs):
        raise gymnasium.error.DependencyNotInstalled("run `pip install gymnasium[box2d]`")

    monkeypatch.setattr(gymnasium, "make_vec", refuse)
    with pytest.raises(ImportError, match=r"LunarLander-v3 .*gymnasium\[box2d\]"):
        host_gymnasium.make("LunarLander-v3", 1, seed=0)


def test_closing_twice_is_harmless():
    env = host_gymnasium.make("CartPole-v1", 2, seed=0)
    env.close()
    env.close()
