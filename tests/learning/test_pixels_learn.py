"""PPO learns from frames: through the large convolutions, through those for boards, from stacks.

No threshold may be moved to where a seed happens to land: if one in two fails, find the cause.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from agents import ppo
from launch.presets.ppo import PRESETS
from rljax import evaluation, sources
from rljax.loops import on_policy
from rljax.nn.torsos import Torso

PRESET = PRESETS["rljax:pixel_catch"].config


def greedy_returns(config: ppo.Config, seed: int, **options: Any) -> np.ndarray:
    """Returns `[200]` of the greedy policy after training on pixel_catch with these options."""
    source = sources.EnvSource("rljax:pixel_catch", config.num_envs, options=tuple(options.items()))
    env = sources.open(source)
    agent = ppo.make(config, env.spec)
    loop = dataclasses.replace(ppo.loop(config), seed=seed, num_devices=1)
    *_, (_, state, _) = on_policy.run(agent, env, on_policy.init(agent, env, loop), loop, 0)
    play = evaluation.player(agent, env, 200, greedy=True)
    return play(state.train.policy, 200, jax.random.key(1_000)).returns


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_what_falls_is_caught_by_sight(seed):
    config = dataclasses.replace(PRESET, total_steps=20_480)
    assert config.torso is Torso.AUTO  # Nature: frames are 80 x 40
    # at most 1; one column of five missed gives 0.6, standing still -0.6
    assert greedy_returns(config, seed).mean() >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_board_of_cells_is_read_from_a_stack(seed):
    config = dataclasses.replace(PRESET, total_steps=61_440)
    assert greedy_returns(config, seed, scale=1, stack=2).mean() >= 0.9
