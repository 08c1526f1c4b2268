"""Atari, MiniGrid and masked Jumanji tasks as EnvPool has them, against EnvPool's own arrays."""

import dataclasses
import math
import warnings
from typing import Any

import envpool
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import evaluation, rollout
from rljax.agent import Agent
from rljax.envs import host_envpool, rendering
from rljax.types import Discrete, EnvSpec, MultiDiscrete, Observation, Part

AGENTS_VIEW = {"episodic_life": True, "reward_clip": True}  # a life an episode, rewards as signs
# Aliens are worth 5 to 30; with so long a step its three lives are soon lost.
INVADERS = {**AGENTS_VIEW, "frame_skip": 16}


def raw(name: str, num_envs: int, **options: Any) -> Any:
    """The pool itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return envpool.make(name, env_type="gymnasium", num_envs=num_envs, seed=0, **options)


def fires(spec: EnvSpec) -> Agent:
    """Always does action 1."""

    def act(policy, carry, observation, key, greedy):
        return carry, jnp.ones(observation.features.shape[0], jnp.int32), {}

    return Agent(spec, init=None, initial_carry=lambda batch: (), act=act, update=None)


@pytest.mark.parametrize(
    ("options", "shape"), [({}, (84, 84, 4)), ({"stack_num": 2, "img_height": 42}, (42, 84, 2))]
)
def test_atari_frames_are_envpools_with_their_channels_last(options, shape):
    env = host_envpool.make("Pong-v5", 2, seed=0, options=options)
    assert env.spec.parts == (Part("observation", shape, "uint8"),)
    assert env.spec.action == Discrete(6)
    pool = raw("Pong-v5", 2, **options)
    shown, expected = [env.reset().features], [pool.reset()[0]]
    for _ in range(30):
        shown.append(env.step(np.full(2, 2, np.int32)).observation.features)
        expected.append(pool.step(np.full(2, 2, np.int32))[0])
    assert shown[0].dtype == np.uint8
    np.testing.assert_array_equal(shown, np.moveaxis(expected, 2, -1))
    latest = np.stack(shown)[..., -1]
    assert (latest[5:] != latest[:-5]).any()  # something moves, in the last channel first
    np.testing.assert_array_equal(latest[9:-1], np.stack(shown)[10:, ..., -2])


def test_xla_steps_of_atari_equal_numpy_steps_bit_for_bit():
    plan = np.random.default_rng(0).integers(0, 4, (130, 2)).astype(np.int32)
    env = host_envpool.make("Breakout-v5", 2, seed=0, options=AGENTS_VIEW)
    env.reset()
    expected = jax.tree.map(lambda *rows: np.stack(rows), *[env.step(action) for action in plan])
    twin = host_envpool.make("Breakout-v5", 2, seed=0, options=AGENTS_VIEW)
    twin.reset()
    xla = twin.xla()
    _, steps = jax.jit(lambda handle, a: jax.lax.scan(xla.step, handle, a))(
        xla.handle, jnp.asarray(plan)
    )
    assert steps.observation.features.shape == (130, 2, 84, 84, 4)
    assert (expected.terminated.sum(), expected.game_over.sum()) == (10, 2)  # five lives each
    assert jax.tree.structure(steps) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(steps), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def game():
    """Steps `[T, 2]` of EnvPool's own arrays, always firing: rewards, ends, scores, game overs."""
    pool = raw("SpaceInvaders-v5", 2, **INVADERS)
    pool.reset()
    rows = []
    for _ in range(200):
        _, reward, terminated, truncated, info = pool.step(np.ones(2, np.int32))
        rows.append((reward, terminated, truncated, info["reward"], info["terminated"] == 1))
    return [np.stack(column) for column in zip(*rows, strict=True)]


def test_the_score_is_not_what_the_agent_learns_from(game):
    reward, terminated, truncated, score, over = game
    env = host_envpool.make("SpaceInvaders-v5", 2, seed=0, options=INVADERS)
    env.reset()
    steps = [env.step(np.ones(2, np.int32)) for _ in range(200)]
    np.testing.assert_array_equal([step.reward for step in steps], reward)
    np.testing.assert_array_equal([step.score for step in steps], score)
    np.testing.assert_array_equal([step.ended for step in steps], terminated | truncated)
    np.testing.assert_array_equal([step.game_over for step in steps], over)
    np.testing.assert_array_equal(reward, np.sign(score))
    assert score.max() > 1
    assert terminated.sum() > over.sum() >= 2  # lives and games


def test_evaluation_counts_whole_games_in_true_points(game):
    *_, score, over = game
    first = [int(np.argmax(over[:, i])) + 1 for i in range(2)]
    expected = [float(score[: first[i], i].sum()) for i in range(2)]
    env = host_envpool.make("SpaceInvaders-v5", 2, seed=0, options=INVADERS)
    play = evaluation.player(fires(env.spec), env, 2, greedy=True)
    result = play((), 2, jax.random.key(0))
    assert result.returns.tolist() == expected
    # less the rows of autoreset, one behind each life but the last
    lost = [int(game[1][: first[i], i].sum()) for i in range(2)]
    assert result.lengths.tolist() == [first[i] - lost[i] + 1 for i in range(2)]


@pytest.mark.parametrize("make", [rollout.host, rollout.envpool_xla])
def test_rollouts_count_them_so_too(game, make, key):
    _, terminated, _, score, over = game
    env = host_envpool.make("SpaceInvaders-v5", 2, seed=0, options=INVADERS)
    collector = make(fires(env.spec), env, 200)
    _, trajectory, episodes = collector.collect((), collector.init(key), key)
    last = [int(np.flatnonzero(over[:, i])[-1]) + 1 for i in range(2)]  # unfinished games wait
    assert int(episodes.count) == over.sum()
    assert float(episodes.return_sum) == sum(score[: last[i], i].sum() for i in range(2))
    np.testing.assert_array_equal(trajectory.transitions.reward, np.sign(score))
    np.testing.assert_array_equal(trajectory.transitions.discount, 1.0 - terminated)
    assert trajectory.transitions.observation.features.dtype == np.uint8


def test_minigrid_shows_a_board_and_a_vector():
    env = host_envpool.make("MiniGrid-Empty-5x5-v0", 3, seed=0)
    assert env.spec.parts == (
        Part("image", (7, 7, 3), "uint8"),
        Part("vector", (100,), "float32"),
    )
    pool = raw("MiniGrid-Empty-5x5-v0", 3)
    shown, (expected, _) = env.reset().features, pool.reset()
    for action in (1, 2, 0):  # turn right, ahead, turn left
        shown = env.step(np.full(3, action, np.int32)).observation.features
        expected = pool.step(np.full(3, action, np.int32))[0]
        np.testing.assert_array_equal(shown["image"], expected["image"])
        direction = np.eye(4)[expected["direction"]]
        np.testing.assert_array_equal(shown["vector"][:, :4], direction)
        mission = expected["mission"].astype(np.float32) / 255
        np.testing.assert_array_equal(shown["vector"][:, 4:], mission)
    assert mission.any()
    _, step = env.xla()
    after = step(env.xla().handle, jnp.zeros(3, jnp.int32))[1].observation.features
    assert {name: (x.shape, x.dtype) for name, x in after.items()} == {
        "image": ((3, 7, 7, 3), np.uint8),
        "vector": ((3, 100), np.float32),
    }


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("BinPack-v2", Discrete(800)),
        ("CVRP-v1", Discrete(21)),
        ("Cleaner-v0", MultiDiscrete((4,) * 3)),
        ("Connector-v2", MultiDiscrete((5,) * 10)),
        ("Game2048-v1", Discrete(4)),
        ("JobShop-v0", MultiDiscrete((21,) * 10)),
        ("Knapsack-v1", Discrete(50)),
        ("LevelBasedForaging-v0", MultiDiscrete((6,) * 2)),
        ("MMST-v0", MultiDiscrete((36,) * 3)),
        ("Maze-v0", Discrete(4)),
        ("MultiCVRP-v0", MultiDiscrete((21,) * 2)),
        ("PacMan-v1", Discrete(5)),
        ("RobotWarehouse-v0", MultiDiscrete((5,) * 4)),
        ("SlidingTilePuzzle-v0", Discrete(4)),
        ("Snake-v1", Discrete(4)),
        ("TSP-v1", Discrete(20)),
        ("Tetris-v0", Discrete(40)),
    ],
)
def test_jumanji_masks_leave_something_to_do_until_the_end(name, action):
    env = host_envpool.make(name, 2, seed=0)
    assert env.spec.has_mask
    assert env.spec.action == action
    observation, ended = env.reset(), np.zeros(2, bool)
    for _ in range(12):
        mask = observation.mask
        assert mask.shape == (2, *action.mask_shape)
        assert mask.dtype == bool
        if isinstance(action, Discrete):
            chosen = mask.argmax(axis=1)
            possible = mask.any(axis=1)
        else:
            components = mask.reshape(2, len(action.nvec), -1)
            chosen, possible = components.argmax(axis=2), components.any(axis=(1, 2))
        assert (possible | ended).all()
        step = env.step(chosen.astype(np.int32))
        observation, ended = step.observation, step.ended
        assert np.isfinite(step.reward).all()


PARTED = EnvSpec(
    "task",
    (),
    "",
    Discrete(2),
    named_parts=(Part("image", (7, 7, 3), "uint8"), Part("vector", (4,), "float32")),
)


@pytest.mark.parametrize(
    ("change", "alike"),
    [
        ({"name": "twin", "max_episode_steps": 5}, True),
        ({"named_parts": PARTED.parts[:1]}, False),
        ({"named_parts": (PARTED.parts[0], Part("vector", (5,), "float32"))}, False),
        ({"named_parts": (), "observation_shape": (4,), "observation_dtype": "float32"}, False),
        ({"action": Discrete(3)}, False),
        ({"has_mask": True}, False),
    ],
)
def test_a_twin_shows_the_same_parts(change, alike):
    assert rendering._alike(dataclasses.replace(PARTED, **change), PARTED) is alike


@pytest.mark.parametrize(
    ("name", "options"), [("Breakout-v5", AGENTS_VIEW), ("MiniGrid-Empty-5x5-v0", {})]
)
def test_pixels_are_recorded_as_the_agent_sees_them(name, options):
    seen = []

    def act(observation: Observation) -> np.ndarray:
        seen.append(jax.tree.map(np.shape, observation.features))
        return np.array([1])

    frames, reason = rendering.render_episode(name, act, seed=0, max_steps=2, options=options)
    assert reason == ""
    assert len(frames) == 3
    assert frames[0].shape[2] == 3
    assert math.prod(frames[0].shape) > 1000
    parts = host_envpool.make(name, 1, 0, options=options).spec.parts
    shapes = {part.name: (1, *part.shape) for part in parts}
    assert seen[-1] == (shapes if len(shapes) > 1 else shapes["observation"])


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("Pong-v5", {"stack": 4}, "Pong-v5 has no option 'stack'; it has .*stack_num"),
        ("Pong-v5", {"episodic_lives": True}, "no option 'episodic_lives'; it has .*episodic_life"),
        ("Pong-v5", {"task": "breakout"}, "no option 'task'"),
        ("Pong-v5", {"episodic_life": "yes"}, "Pong-v5 takes no .*: a value has the wrong type"),
        ("Pong-v5", {"mode": 99}, "Pong-v5 with {'mode': 99}: Invalid game mode requested"),
        # EnvPool itself ends the process at these
        ("Pong-v5", {"stack_num": 0}, "stack_num must be a whole number from 1, not 0"),
        ("Pong-v5", {"stack_num": "four"}, "stack_num must be a whole number from 1, not 'four'"),
        ("Pong-v5", {"noop_max": 0}, "noop_max must be a whole number from 1, not 0"),
        ("Pong-v5", {"frame_skip": -4}, "frame_skip must be a whole number from 1, not -4"),
        ("Pong-v5", {"img_height": 20}, "img_height must be a whole number from 32, not 20"),
        ("Pong-v5", {"img_width": 0}, "img_width must be a whole number from 32, not 0"),
    ],
)
def test_wrong_options_get_one_sentence(name, options, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        host_envpool.make(name, 1, 0, options=options)
    assert "\n" not in str(caught.value)
