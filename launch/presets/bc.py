"""Behavior cloning's presets, by environment and by D4RL's names.

`python -m launch.train --agent=bc --dataset=FILE --env=NAME` starts from the one of NAME. Those of
D4RL's datasets, --preset=hopper-medium-v2, are CORL's configs; the published numbers are its last
scores of four seeds.
"""

from agents.bc import Config, Loss
from launch import d4rl
from launch.presets import from_datasets

_SMALL = Config(total_updates=50_000, hidden_sizes=(128, 128))
_CORL = Config(loss=Loss.SQUARED_ERROR, normalize_observation=True)
_OURS = {
    "CartPole-v1": _SMALL,
    "Pendulum-v1": _SMALL,
    "HalfCheetah-v4": Config(total_updates=200_000, normalize_observation=True),
    "Hopper-v4": Config(total_updates=200_000, normalize_observation=True),
}
_D4RL = dict.fromkeys(d4rl.PUBLISHED, _CORL)
PRESETS = from_datasets("bc", _OURS, _D4RL)
