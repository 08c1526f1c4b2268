"""Recurrent PPO's presets, for tasks that ask for a memory; all of them our own.

`python -m launch.train --agent=ppo_recurrent --env=NAME` starts from the one of that name;
`--config.memory=lstm` or `attention` changes what it remembers with.
"""

import functools

from agents.ppo_recurrent import Config
from launch.presets import preset

_TMAZE = Config(
    total_steps=150_000,
    num_envs=64,
    rollout_length=32,
    num_epochs=4,
    num_minibatches=4,  # of 16 sequences
    learning_rate=3e-3,
    entropy_cost=0.01,
    hidden_sizes=(32,),
    memory_size=32,
)
_POSITIONS = Config(
    total_steps=400_000,
    num_envs=32,
    rollout_length=64,
    num_epochs=8,
    num_minibatches=4,  # of 8 sequences
    learning_rate=5e-4,
    hidden_sizes=(32,),
    memory_size=32,
)
_MINIGRID = Config(
    total_steps=2_000_000,
    num_envs=64,
    rollout_length=64,
    num_epochs=4,
    num_minibatches=8,  # of 8 sequences
    learning_rate=1e-3,
    entropy_cost=0.01,
)
_preset = functools.partial(preset, "ppo_recurrent")


PRESETS = {
    "rljax:tmaze": _preset(
        "rljax:tmaze",
        _TMAZE,
        "our own",
        "not measured",
        "1.00 (100 greedy episodes, seed 0; -0.02 without memory); at most 1",
    ),
    "rljax:cartpole_positions": _preset(
        "rljax:cartpole_positions",
        _POSITIONS,
        "our own",
        "not measured",
        "443.9 (4 seeds, 100 episodes each: 492.7, 396.6, 390.6, 495.6); at most 500",
    ),
    "MiniGrid-MemoryS7-v0": _preset(
        "MiniGrid-MemoryS7-v0", _MINIGRID, "our own", "not measured", "not measured; at most 1"
    ),
}
