"""Behavior cloning's presets, by environment and by D4RL's names.

`python -m launch.train --agent=bc --dataset=FILE --env=NAME` starts from the one of NAME. Those of
D4RL's datasets, --preset=hopper-medium-v2, are CORL's configs; the published numbers are its last
scores of four seeds.
"""

from agents.bc import Config, Loss
from launch.presets import D4RL_NAMES, from_datasets

_SMALL = Config(total_updates=50_000, hidden_sizes=(128, 128))
_LOCOMOTION = Config(loss=Loss.SQUARED_ERROR, normalize_observation=True)
_OURS = {
    "CartPole-v1": _SMALL,
    "Pendulum-v1": _SMALL,
    "HalfCheetah-v4": Config(total_updates=200_000, normalize_observation=True),
    "Hopper-v4": Config(total_updates=200_000, normalize_observation=True),
}
_D4RL = dict.fromkeys(D4RL_NAMES, _LOCOMOTION)
_PUBLISHED = "42.40 35.66 55.95 53.51 29.81 52.30 63.23 21.80 98.96"
PRESETS = from_datasets("bc", _OURS, _D4RL, dict(zip(D4RL_NAMES, _PUBLISHED.split(), strict=True)))
