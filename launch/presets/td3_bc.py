"""TD3+BC's presets, by environment and by D4RL's names.

`python -m launch.train --agent=td3_bc --dataset=FILE --env=NAME` starts from the one of NAME. Those
of D4RL's datasets, --preset=hopper-medium-v2, are CORL's configs; the published numbers are its
last scores of four seeds.
"""

from agents.td3_bc import Config
from launch.presets import D4RL_NAMES, from_datasets

_OURS = {
    "Pendulum-v1": Config(total_updates=50_000, normalize_observation=True),
    "HalfCheetah-v4": Config(total_updates=200_000, normalize_observation=True),
    "Hopper-v4": Config(total_updates=200_000, normalize_observation=True),
}
_D4RL = dict.fromkeys(D4RL_NAMES, Config(normalize_observation=True))
_PUBLISHED = "48.10 44.84 90.78 60.37 64.42 101.17 82.71 85.62 110.03"
PRESETS = from_datasets(
    "td3_bc", _OURS, _D4RL, dict(zip(D4RL_NAMES, _PUBLISHED.split(), strict=True))
)
