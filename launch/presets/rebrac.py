"""ReBRAC's presets, by environment and by D4RL's names.

`python -m launch.train --agent=rebrac --dataset=FILE --env=NAME` starts from the one of NAME. Those
of D4RL's datasets, --preset=hopper-medium-v2, have the penalties of the authors' configs, which are
CORL's too; the published numbers are CORL's last scores of four seeds, of those that it lists.
"""

from agents.rebrac import Config
from launch.presets import D4RL_NAMES, from_datasets

_PENALTIES = {  # of policy and critics, β1 and β2
    "halfcheetah-random-v2": (0.001, 0.1),
    "halfcheetah-medium-v2": (0.001, 0.01),
    "halfcheetah-expert-v2": (0.01, 0.01),
    "halfcheetah-medium-expert-v2": (0.01, 0.1),
    "halfcheetah-medium-replay-v2": (0.01, 0.001),
    "halfcheetah-full-replay-v2": (0.001, 0.1),
    "hopper-random-v2": (0.001, 0.01),
    "hopper-medium-v2": (0.01, 0.01),
    "hopper-expert-v2": (0.1, 0.1),
    "hopper-medium-expert-v2": (0.1, 0.01),
    "hopper-medium-replay-v2": (0.05, 0.5),
    "hopper-full-replay-v2": (0.01, 0.01),
    "walker2d-random-v2": (0.01, 0.0),
    "walker2d-medium-v2": (0.05, 0.1),
    "walker2d-expert-v2": (0.01, 0.5),
    "walker2d-medium-expert-v2": (0.01, 0.01),
    "walker2d-medium-replay-v2": (0.05, 0.01),
    "walker2d-full-replay-v2": (0.01, 0.01),
}
_OURS = {
    "Pendulum-v1": Config(total_updates=50_000, batch_size=256, hidden_sizes=(256, 256)),
    "HalfCheetah-v4": Config(total_updates=200_000),
    "Hopper-v4": Config(total_updates=200_000),
}
_D4RL = {
    name: Config(actor_penalty=actor, critic_penalty=critic)
    for name, (actor, critic) in _PENALTIES.items()
}
_PUBLISHED = "64.04 51.18 103.80 102.29 94.98 109.45 85.82 84.25 111.86"
PRESETS = from_datasets(
    "rebrac", _OURS, _D4RL, dict(zip(D4RL_NAMES, _PUBLISHED.split(), strict=True))
)
