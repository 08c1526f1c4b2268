"""The random agent: uniform over what is allowed, also when greedy; it learns nothing."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import random
from rljax import rollout
from rljax.envs import catch, wrappers
from rljax.types import Box, Discrete, EnvSpec, MultiDiscrete, Observation, Part
from tests.agents.updates import learn

N = 6_000
CONFIG = random.Config(total_steps=64, num_envs=4, rollout_length=4)
GREEDY = pytest.mark.parametrize("greedy", [False, True])
INF = math.inf


def act(spec, features, mask=None, *, greedy=False, seed=0):
    agent = random.make(CONFIG, spec)
    policy = agent.init(jax.random.key(1)).policy
    observation = Observation(features, mask)
    carry, action, extras = agent.act(policy, (), observation, jax.random.key(seed), greedy)
    assert carry == ()
    return np.asarray(action), {name: np.asarray(x) for name, x in extras.items()}


def assert_uniform(actions, allowed):
    """Pearson's χ², which is near its degrees of freedom d, with deviation √(2d), if it is so."""
    counts = np.array([(actions == a).sum() for a in allowed])
    assert counts.sum() == len(actions)  # nothing but what is allowed
    expected = len(actions) / len(allowed)
    freedom = len(allowed) - 1
    assert ((counts - expected) ** 2 / expected).sum() <= freedom + 4 * math.sqrt(2 * freedom)


def test_the_count_notices_a_small_preference():
    crooked = np.repeat(np.arange(4), [1_600, 1_500, 1_500, 1_400])  # 26.7 % in place of 25 %
    with pytest.raises(AssertionError):
        assert_uniform(crooked, range(4))


@GREEDY
def test_every_allowed_action_is_as_likely(greedy):
    spec = EnvSpec("discrete", (3,), "float32", Discrete(4))
    action, extras = act(spec, jnp.zeros((N, 3)), greedy=greedy)
    assert action.dtype == np.int32
    assert_uniform(action, range(4))
    np.testing.assert_allclose(extras["log_prob"], -math.log(4), rtol=1e-5)
    np.testing.assert_allclose(extras["entropy"], math.log(4), rtol=1e-5)


@GREEDY
def test_masks_are_obeyed_row_by_row(greedy):
    spec = EnvSpec("masked", (3,), "float32", Discrete(5), has_mask=True)
    allowed = [(0, 2, 4), (1,)]
    mask = np.zeros((2 * N, 5), bool)
    mask[:N, allowed[0]] = mask[N:, allowed[1]] = True
    action, extras = act(spec, jnp.zeros((2 * N, 3)), jnp.asarray(mask), greedy=greedy)
    assert_uniform(action[:N], allowed[0])
    assert (action[N:] == 1).all()
    np.testing.assert_allclose(extras["log_prob"][[0, N]], [-math.log(3), 0], atol=1e-5)
    np.testing.assert_allclose(extras["probabilities"][0], [1 / 3, 0, 1 / 3, 0, 1 / 3], atol=1e-6)


@GREEDY
def test_components_are_drawn_apart(greedy):
    spec = EnvSpec("multi", (3,), "float32", MultiDiscrete((2, 3)), has_mask=True)
    mask = jnp.broadcast_to(jnp.array([[True, True, True, False, True]]), (N, 5))
    action, extras = act(spec, jnp.zeros((N, 3)), mask, greedy=greedy)
    assert_uniform(action[:, 0] * 10 + action[:, 1], [0, 2, 10, 12])
    np.testing.assert_allclose(extras["log_prob"], -math.log(4), rtol=1e-5)


@GREEDY
def test_boxes_are_filled_to_their_bounds_and_open_sides_are_normal(greedy):
    box = Box((-1.0, 2.0, 0.0, -INF), (1.0, 6.0, INF, INF))
    spec = EnvSpec("box", (3,), "float32", box)
    action, extras = act(spec, jnp.zeros((N, 3)), greedy=greedy)
    assert action.shape == (N, 4)
    assert action.dtype == np.float32
    for component, low, width in ((0, -1, 2), (1, 2, 4)):
        x = (action[:, component] - low) / width
        assert x.min() >= 0
        assert x.max() <= 1
        assert_uniform(np.floor(10 * x), range(10))
    for component in (2, 3):  # bounded on one side is not bounded
        assert action[:, component].mean() == pytest.approx(0, abs=4 / math.sqrt(N))
        assert action[:, component].var() == pytest.approx(1, abs=4 * math.sqrt(2 / N))
    # of the first row: 1/2 · 1/4 for the bounded ones, φ(x) = e^(-x²/2) / √(2π) for the others
    density = 0.125 * np.exp(-(action[0, 2:] ** 2).sum() / 2) / (2 * math.pi)
    assert extras["log_prob"][0] == pytest.approx(math.log(density), abs=1e-4)
    # ln 2 + ln 4 + 2 · ½ ln(2πe)
    assert extras["entropy"][0] == pytest.approx(math.log(8 * 2 * math.pi * math.e), abs=1e-4)
    np.testing.assert_allclose(extras["mean"][0], [0, 4, 0, 0])
    np.testing.assert_allclose(extras["scale"][0], [2 / 12**0.5, 4 / 12**0.5, 1, 1], rtol=1e-5)


def test_named_parts_have_a_batch_too():
    parts = (Part("image", (5, 5, 2), "uint8"), Part("vector", (3,), "float32"))
    spec = EnvSpec("named", (), "float32", Discrete(4), named_parts=parts)
    action, _ = act(spec, spec.example((2, 3)).features)
    assert action.shape == (2, 3)


@GREEDY
def test_a_key_gives_its_actions_again_and_another_key_others(greedy):
    spec = EnvSpec("discrete", (3,), "float32", Discrete(4))
    first, again, other = (
        act(spec, jnp.zeros((50, 3)), greedy=greedy, seed=seed)[0] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_it_learns_nothing_from_what_it_collects(key):
    env = wrappers.autoreset(catch.make())
    agent = random.make(CONFIG, env.spec)
    state = agent.init(key)
    assert jax.tree.leaves(state.policy) == []
    assert jax.tree.leaves(agent.initial_carry(3)) == []
    collector = rollout.make(agent, env, 4, 4, rollout.Kind.AUTO)
    _, batch, _ = collector.collect(state.policy, collector.init(key), key)
    assert set(batch.transitions.extras) == {"log_prob"}
    after, metrics = learn(agent, state, batch, key, devices=2)
    assert after == random.TrainState(jnp.int32(1))
    assert metrics == {}


def test_a_run_leaves_metrics_scores_and_a_checkpoint(tmp_path):
    from launch import flags, train

    arguments = ["train", "--agent=random", "--env=rljax:catch", f"--workdir={tmp_path}"]
    arguments += ["--config.total_steps=320", "--config.num_envs=4", "--config.rollout_length=20"]
    arguments += ["--eval_episodes=20", "--num_devices=1"]
    assert train.train(flags.experiment(arguments)) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["step"] == 320
    assert -1 <= result["eval/return_mean"] < 0.5  # a column of five is hit one time in five
    assert (tmp_path / "checkpoints").is_dir()


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(random.Config)])
def test_what_cannot_work_is_told(name):
    with pytest.raises(ValueError, match=name):
        random.validate(dataclasses.replace(CONFIG, **{name: 0}))


def test_every_field_reaches_the_loop():
    loop = random.loop(random.Config(total_steps=1000, num_envs=5, rollout_length=7))
    assert (loop.last_step, loop.rows, loop.num_envs) == (980, 35, 5)
