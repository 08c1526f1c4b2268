import jax
import numpy as np
import pytest

from rljax import sources
from rljax.envs import IN_GRAPH, host_envpool, host_gymnasium
from rljax.envs.base import JaxEnv
from rljax.envs.host_envpool import EnvPoolEnv
from rljax.envs.host_gymnasium import GymnasiumEnv
from rljax.sources import EnvSource


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("CartPole-v1", EnvPoolEnv),  # both have it
        ("Taxi-v4", GymnasiumEnv),  # only Gymnasium has it
        ("envpool:CartPole-v1", EnvPoolEnv),
        ("gymnasium:CartPole-v1", GymnasiumEnv),
        ("rljax:cartpole", JaxEnv),
    ],
)
def test_prefixes_choose_the_simulator(name, kind):
    env = sources.open(EnvSource(name, 2))
    assert isinstance(env, kind)
    assert env.spec.name == name  # as the user gave it


@pytest.mark.parametrize("name", IN_GRAPH)
def test_every_in_graph_environment_steps_with_autoreset_under_its_spec(name):
    env = sources.open(EnvSource(f"rljax:{name}", 1))
    spec = env.spec
    state, observation = env.reset(jax.random.key(0))
    action = np.zeros(spec.action.shape, spec.action.dtype)
    step = jax.jit(env.step)
    rewards = []
    for i in range(spec.max_episode_steps + 1):
        assert observation.features.shape == spec.observation_shape
        assert observation.features.dtype == spec.observation_dtype
        assert (observation.mask is not None) == spec.has_mask
        state, timestep = step(state, action, jax.random.key(i))
        observation = timestep.observation
        rewards.append(float(timestep.reward))
        assert timestep.reward.dtype == np.float32
        if timestep.terminated | timestep.truncated:
            break
    else:
        pytest.fail("no episode ended within its limit")
    _, restarted = step(state, action, jax.random.key(99))
    assert restarted.reward == 0
    assert not restarted.terminated | restarted.truncated


@pytest.mark.parametrize("name", ["CartPole-v1", "gymnasium:CartPole-v1", "rljax:cartpole"])
def test_options_reach_the_task(name):
    env = sources.open(EnvSource(name, 2, options=(("max_episode_steps", 6),)))
    assert env.spec.max_episode_steps == 6


def test_seed_and_threads_reach_the_pool():
    env = sources.open(EnvSource("CartPole-v1", 2, seed=7, num_threads=1))
    expected = host_envpool.make("CartPole-v1", 2, 7).reset().features
    np.testing.assert_array_equal(env.reset().features, expected)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (EnvSource("cartpole", 1), "near it: rljax:cartpole, CartPole-v1"),
        (EnvSource("Taxi-v5", 1), "no environment 'Taxi-v5' .* near it: Taxi-v"),
        (EnvSource("qqqqqq", 1), "near it: none"),
        (EnvSource("envpool:Taxi-v4", 1), "EnvPool has no task 'Taxi-v4'; near it: Taxi-v3"),
        (EnvSource("rljax:pong", 1), "no in-graph environment 'pong'; there are cartpole"),
        (EnvSource("ale:Pong-v5", 1), "names no source 'ale'"),
        (EnvSource("CartPole-v1", 0), "num_envs must be at least 1, not 0"),
        (EnvSource("rljax:cartpole", -1), "num_envs must be at least 1, not -1"),
        (
            EnvSource("rljax:catch", 1, options=(("rows", 3),)),
            "no option 'rows'; its options: none",
        ),
        (
            EnvSource("rljax:corridor", 1, options=(("width", 3),)),
            "no option 'width'; its options: length, max_episode_steps",
        ),
        (EnvSource("rljax:corridor", 1, options=(("length", 1),)), "at least 2"),
        (EnvSource("CartPole-v1", 1, options=(("gravity", 1),)), "no option 'gravity'"),
    ],
)
def test_wrong_sources_get_one_sentence(source, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        sources.open(source)
    assert "\n" not in str(caught.value)


def test_gymnasium_steps_in_where_envpool_is_not_installed(monkeypatch):
    monkeypatch.setattr(host_envpool, "names", list)
    assert isinstance(sources.open(EnvSource("CartPole-v1", 1)), GymnasiumEnv)
    monkeypatch.setattr(host_gymnasium, "names", list)
    with pytest.raises(ValueError, match="no environment 'CartPole-v1'"):
        sources.open(EnvSource("CartPole-v1", 1))


def test_a_source_is_hashable():
    assert hash(EnvSource("CartPole-v1", 2)) == hash(EnvSource("CartPole-v1", 2))
