"""Made-up rows as rollouts bring them, and a slow reference for what a sample of them must hold.

The observation of row t of environment b is 100 b + t, so that a sample says where it is from.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rljax.replay.base import Sample
from rljax.types import Observation, Transition


def make(reward, discount, valid) -> Transition:
    """Rows `[T, B]`, given as nested lists; the action is the observation again."""
    reward, discount = (np.asarray(x, np.float32) for x in (reward, discount))
    time, env = np.indices(reward.shape)
    name = np.asarray(100 * env + time, np.float32)
    rows: Any = (Observation(name[:, :, None]), name, reward, discount, np.asarray(valid, bool))
    return Transition(*rows, extras={})


def episodes(time: int, num_envs: int, seed: int = 0) -> Transition:
    """Random episodes of one step or more, half terminated and half truncated, with autoreset."""
    rng = np.random.default_rng(seed)
    reward = rng.normal(size=(time, num_envs))
    discount, valid = np.ones((time, num_envs)), np.ones((time, num_envs), bool)
    for env in range(num_envs):
        for row in range(1, time):
            ended = valid[row - 1, env] and rng.random() < 0.25
            valid[row, env] = not ended
            discount[row - 1, env] = not (ended and rng.random() < 0.5)
    reward[~valid] = 1e6  # shows wherever it is counted
    discount[~valid] = 1.0
    return make(reward, discount, valid)


def part(rows: Transition, start: int, stop: int) -> Transition:
    """Rows `start` up to `stop`, in time."""
    return jax.tree.map(lambda x: x[start:stop], rows)


def row_of(rows: Transition) -> Transition:
    """The shapes of one row, for `init`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)


def fill(buffer, rows: Transition, length: int):
    """A replay that was given all rows, `length` at a time."""
    add = jax.jit(buffer.add)
    state = buffer.init(row_of(rows))
    for start in range(0, len(rows.reward), length):
        state = add(state, part(rows, start, start + length))
    return state


def expected(
    rows: Transition, time: int, env: int, num_steps: int, gamma: float
) -> tuple[float, float, float]:
    """Reward, discount and next observation of a sample of that row, one step after another."""
    total, discount, step = 0.0, 1.0, 0
    while step < num_steps and rows.valid[time + step, env]:
        total += gamma**step * float(rows.reward[time + step, env])
        discount *= gamma * float(rows.discount[time + step, env])
        step += 1
    return total, discount, 100.0 * env + time + step


def check(sample: Sample, rows: Transition, num_steps: int, gamma: float) -> set[tuple[int, int]]:
    """Every row of weight is what the reference says; returns where they are from."""
    sample = jax.tree.map(np.asarray, sample)
    names = sample.observation.features[:, 0]
    np.testing.assert_array_equal(sample.action, names)
    chosen = sample.weight > 0
    seen = {(int(name) % 100, int(name) // 100) for name in names[chosen]}
    for time, env in seen:
        assert rows.valid[time, env]
        these = chosen & (names == 100 * env + time)
        reward, discount, following = expected(rows, time, env, num_steps, gamma)
        np.testing.assert_allclose(sample.reward[these], reward, rtol=1e-5)
        np.testing.assert_allclose(sample.discount[these], discount, rtol=1e-5)
        np.testing.assert_array_equal(sample.next_observation.features[these, 0], following)
    return seen


def drawable(rows: Transition, newest: int, kept: int, num_steps: int) -> set[tuple[int, int]]:
    """Valid rows among the last `kept`, the last of them `newest - 1`, that have n successors."""
    return {
        (time, env)
        for time in range(max(0, newest - kept), newest - num_steps)
        for env in range(rows.valid.shape[1])
        if rows.valid[time, env]
    }


def draw(buffer, state, keys: int = 20, seed: int = 0) -> Sample:
    """Many samples as one, `[keys · B, ...]`."""
    drawn = jax.jit(jax.vmap(buffer.sample, in_axes=(None, 0)))(
        state, jax.random.split(jax.random.key(seed), keys)
    )
    return jax.tree.map(lambda x: jnp.reshape(x, (-1, *x.shape[2:])), drawn)
