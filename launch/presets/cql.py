"""CQL's presets, by environment and by D4RL's names.

`python -m launch.train --agent=cql --dataset=FILE --env=NAME` starts from the one of NAME. Those of
D4RL's datasets, --preset=hopper-medium-v2, are CORL's configs; the published numbers are its last
scores of four seeds.

Ours are of small networks and few updates: minutes on two cores. docs/benchmarks.md has what they
earn.
"""

import dataclasses

from agents.cql import Config
from launch import d4rl
from launch.presets import from_datasets

_SMALL = Config(
    total_updates=30_000,
    actor_learning_rate=3e-4,
    conservative_weight=1.0,
    actor_hidden_sizes=(128, 128),
    critic_hidden_sizes=(128, 128),
)
_MUJOCO = dataclasses.replace(  # with one step and no scale it was behind bc on medium
    _SMALL,
    conservative_weight=5.0,
    num_draws=5,
    num_steps=5,
    target_rate=0.02,
    normalize_observation=True,
    normalize_reward=True,
)
_OURS = {
    "Pendulum-v1": _SMALL,
    "HalfCheetah-v4": _MUJOCO,
    # Behind bc on medium, a log of one policy, where a weight of 20 was not: docs/benchmarks.md.
    "Hopper-v4": dataclasses.replace(_MUJOCO, total_updates=10_000),
}
_LOCOMOTION = Config(normalize_observation=True)
_ANTMAZE = Config(
    actor_learning_rate=1e-4,
    conservative_weight=5.0,
    gap_target=0.8,
    gap_min=-200.0,
    max_target_backup=True,
    reward_multiplier=10.0,
    reward_bias=-5.0,
    critic_hidden_sizes=(256,) * 5,
)
_D4RL = (
    dict.fromkeys(d4rl.LOCOMOTION, _LOCOMOTION)
    | {"hopper-medium-v2": dataclasses.replace(_LOCOMOTION, normalize_reward=True)}
    | dict.fromkeys(d4rl.ANTMAZE, _ANTMAZE)
    | dict.fromkeys(d4rl.MAZE2D, dataclasses.replace(_LOCOMOTION, gap_target=5.0))
    | dict.fromkeys(
        d4rl.ADROIT,
        dataclasses.replace(_LOCOMOTION, actor_learning_rate=1e-4, conservative_weight=1.0),
    )
)
PRESETS = from_datasets("cql", _OURS, _D4RL)
