"""Recurrent PPO remembers: what a policy without a memory cannot, on its presets."""

import dataclasses

import jax
import numpy as np
import pytest

from agents import ppo, ppo_recurrent
from launch.presets.ppo_recurrent import PRESETS
from rljax import evaluation, registry, sources
from rljax.loops import on_policy
from rljax.nn.memory import Memory

TMAZE = PRESETS["rljax:tmaze"].config
POSITIONS = PRESETS["rljax:cartpole_positions"].config


def returns(name: str, config: ppo.Config, seed: int) -> np.ndarray:
    """Of 100 greedy episodes after training, in environments that training did not see."""
    agent_name = type(config).__module__.removeprefix("agents.")
    module = registry.agent_module(agent_name)
    env = sources.open(sources.EnvSource(name, config.num_envs, seed))
    agent = module.make(config, env.spec)
    loop = dataclasses.replace(module.loop(config), seed=seed, num_devices=1)
    *_, (_, state, _) = on_policy.run(agent, env, on_policy.init(agent, env, loop), loop, 0)
    other = sources.open(sources.EnvSource(name, 50, seed=1_000))
    play = evaluation.player(agent, other, 50, greedy=True)
    return play(state.train.policy, 100, jax.random.key(1_000)).returns


def without_memory(config: ppo_recurrent.Config) -> ppo.Config:
    """The same but for the memory."""
    fields = (f.name for f in dataclasses.fields(ppo.Config))
    shared = {name: getattr(config, name) for name in fields}
    return ppo.Config(**shared)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("memory", "changes"),
    [
        (Memory.GRU, {}),
        # The others may find it at the preset's rate and lose it again.
        (Memory.ATTENTION, {"learning_rate": 1e-3, "total_steps": 80_000}),
        (
            Memory.LSTM,
            {
                "learning_rate": 1e-3,
                "total_steps": 90_000,
                "num_epochs": 8,
                "memory_size": 64,
            },
        ),
    ],
)
def test_the_hint_at_the_foot_of_the_maze_is_remembered(memory, changes):
    config = dataclasses.replace(TMAZE, memory=memory, **changes)
    assert returns("rljax:tmaze", config, seed=0).mean() >= 0.9  # at most 1


@pytest.mark.slow
def test_without_a_memory_the_maze_is_a_coin_toss():
    got = returns("rljax:tmaze", without_memory(TMAZE), seed=0)
    # Turning at random gives 0 ± 0.1 on average over 100 episodes; walls cost, and never pay.
    assert got.mean() <= 0.4


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_pole_is_kept_up_without_being_shown_how_it_moves(seed):
    assert returns("rljax:cartpole_positions", POSITIONS, seed).mean() >= 300


@pytest.mark.slow
def test_without_a_memory_the_pole_falls():
    got = returns("rljax:cartpole_positions", without_memory(POSITIONS), seed=0)
    assert got.mean() <= 150
