"""IQL's presets, by environment and by D4RL's names.

`python -m launch.train --agent=iql --dataset=FILE --env=NAME` starts from the one of NAME. Those of
D4RL's datasets, --preset=hopper-medium-v2, are CORL's configs; the published numbers are its last
scores of four seeds.

Ours are for fewer updates than theirs, where a policy whose rate stays as it is learns more, but on
CartPole: docs/benchmarks.md.
"""

import dataclasses

from agents.iql import Config
from launch import d4rl
from launch.presets import from_datasets

_SMALL = Config(total_updates=50_000, hidden_sizes=(128, 128))
_MUJOCO = Config(
    total_updates=200_000, anneal_actor_learning_rate=False, normalize_observation=True
)
_LOCOMOTION = Config(normalize_observation=True)
_HOPPER = dataclasses.replace(
    _LOCOMOTION, deterministic=True, target_rate=0.001, normalize_reward=True
)
_ANTMAZE = Config(
    normalize_observation=True, reward_bias=-1.0, expectile=0.9, inverse_temperature=10.0
)
_EXCEPTIONS = {
    "hopper-medium-v2": _HOPPER,
    "hopper-medium-replay-v2": _HOPPER,
    "hopper-medium-expert-v2": Config(
        normalize_observation=True, expectile=0.5, inverse_temperature=6.0
    ),
}
_OURS = {
    "CartPole-v1": _SMALL,
    "Pendulum-v1": dataclasses.replace(_SMALL, anneal_actor_learning_rate=False),
    "HalfCheetah-v4": _MUJOCO,
    # By 0.99 who runs fast and falls after 450 steps is worth more than who seldom falls. Values
    # come from hundreds of steps ahead: by one step and 0.005 they still rise at 50,000.
    "Hopper-v4": dataclasses.replace(
        _MUJOCO, discount=0.997, num_steps=10, target_rate=0.02, normalize_reward=True
    ),
}
# Adroit's have dropout in the policy, which is not here.
_D4RL = (
    dict.fromkeys((*d4rl.LOCOMOTION, *d4rl.MAZE2D), _LOCOMOTION)
    | _EXCEPTIONS
    | dict.fromkeys(d4rl.ANTMAZE, _ANTMAZE)
)
PRESETS = from_datasets("iql", _OURS, _D4RL)
