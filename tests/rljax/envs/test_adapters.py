"""Other libraries' environments in the graph: `make test-adapters` has all four of them."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import random
from rljax import rollout, sources
from rljax.types import Box, Discrete

MODULES = {
    "gymnax": "gymnax",
    "brax": "brax",
    "playground": "mujoco_playground",
    "navix": "navix",
}
TASKS = {  # name -> features, their type, actions, options
    "gymnax:CartPole-v1": ((4,), "float32", Discrete(2), {}),
    "gymnax:Breakout-MinAtar": ((10, 10, 4), "uint8", Discrete(3), {}),
    "navix:Navix-Empty-5x5-v0": ((75,), "float32", Discrete(7), {}),
    "brax:reacher": ((11,), "float32", Box((-1.0, -1.0), (1.0, 1.0)), {}),
    "playground:CartpoleBalance": ((5,), "float32", Box((-1.0,), (1.0,)), {}),
}
# What the libraries warn of themselves is not ours to answer for.
pytestmark = pytest.mark.filterwarnings("ignore")


def opened(name, **options):
    prefix = name.partition(":")[0]
    pytest.importorskip(MODULES[prefix], reason=f"needs the extra {prefix}")
    return sources.open(sources.EnvSource(name, 2, options=tuple(options.items())))


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_collected_from_and_its_limit_truncates(name):
    shape, dtype, action, options = TASKS[name]
    with jax.numpy_rank_promotion("allow"):  # inside of the libraries
        env = opened(name, max_episode_steps=3, **options)
        spec = env.spec
        assert (spec.name, spec.max_episode_steps) == (name, 3)
        assert (spec.observation_shape, spec.observation_dtype) == (shape, dtype)
        assert spec.action == action
        agent = random.make(random.Config(), spec)
        collector = rollout.in_graph(agent, env, 2, 12)
        policy = agent.init(jax.random.key(0)).policy
        running = collector.init(jax.random.key(1))
        _, trajectory, episodes = collector.collect(policy, running, jax.random.key(2))
    rows = jax.tree.map(np.asarray, trajectory.transitions)
    assert rows.observation.features.shape == (12, 2, *shape)
    assert rows.observation.features.dtype == dtype
    assert np.isfinite(rows.reward).all()
    # Three steps, and the row that autoreset puts behind them: the fourth, eighth and twelfth.
    np.testing.assert_array_equal(rows.valid[:, 0], [True, True, True, False] * 3)
    np.testing.assert_array_equal(rows.discount, np.ones((12, 2)))  # cut off, not ended
    assert (episodes.count, episodes.length_sum) == (6, 18)


def test_falling_over_is_an_end_and_no_truncation():
    with jax.numpy_rank_promotion("allow"):
        env = opened("gymnax:CartPole-v1")
        state, _ = env.reset(jax.random.key(0))
        for i in range(30):  # always to the left: the pole falls within a dozen steps
            state, step = env.step(state, jnp.int32(0), jax.random.key(i))
            if step.ended:
                break
    assert step.terminated
    assert not step.truncated


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("gymnax:CartPol-v1", {}, "near it: CartPole-v1"),
        ("gymnax:CartPole-v1", {"gravty": 1}, "has no option 'gravty'"),
        ("navix:Navix-Empty-6x5-v0", {}, "near it: Navix-Empty-6x6-v0"),
        ("brax:antt", {}, "near it: ant"),
        ("playground:CartpolBalance", {}, "near it: CartpoleBalance"),
        ("playground:CartpoleBalance", {"ctrl_td": 1}, "has no option 'ctrl_td'"),
    ],
)
def test_what_is_not_there_is_refused_with_the_nearest(name, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        opened(name, **options)


@pytest.mark.parametrize("prefix", MODULES)
def test_a_missing_package_is_named_by_its_extra(prefix):
    if importlib.util.find_spec(MODULES[prefix]):
        pytest.skip(f"{prefix} is installed")
    with pytest.raises(ImportError, match=rf"pip install 'rljax\[{prefix}\]'"):
        sources.open(sources.EnvSource(f"{prefix}:any", 1))
