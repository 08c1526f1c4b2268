"""TD3+BC's presets, by environment and by D4RL's names.

`python -m launch.train --agent=td3_bc --dataset=FILE --env=NAME` starts from the one of NAME. Those
of D4RL's datasets, --preset=hopper-medium-v2, are CORL's configs; the published numbers are its
last scores of four seeds.
"""

import dataclasses

from agents.td3_bc import Config
from launch import d4rl
from launch.presets import from_datasets

_OURS = {
    "Pendulum-v1": Config(total_updates=50_000, normalize_observation=True),
    "HalfCheetah-v4": Config(total_updates=200_000, normalize_observation=True),
    "Hopper-v4": Config(total_updates=200_000, normalize_observation=True),
}
_CORL = Config(normalize_observation=True)
_D4RL = dict.fromkeys(d4rl.PUBLISHED, _CORL) | dict.fromkeys(
    d4rl.ANTMAZE, dataclasses.replace(_CORL, reward_bias=-1.0)
)
PRESETS = from_datasets("td3_bc", _OURS, _D4RL)
