"""ReBRAC's presets, by environment and by D4RL's names.

`python -m launch.train --agent=rebrac --dataset=FILE --env=NAME` starts from the one of NAME. Those
of D4RL's datasets, --preset=hopper-medium-v2, have the penalties of the authors' configs, which are
CORL's too; the published numbers are CORL's last scores of four seeds, of those that it lists.
"""

import dataclasses

from agents.rebrac import Config
from launch import d4rl
from launch.presets import from_datasets

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
    "antmaze-umaze-v2": (0.003, 0.002),
    "antmaze-umaze-diverse-v2": (0.003, 0.001),
    "antmaze-medium-play-v2": (0.001, 0.0005),
    "antmaze-medium-diverse-v2": (0.001, 0.0),
    "antmaze-large-play-v2": (0.002, 0.001),
    "antmaze-large-diverse-v2": (0.002, 0.002),
    "maze2d-umaze-v1": (0.003, 0.001),
    "maze2d-medium-v1": (0.003, 0.001),
    "maze2d-large-v1": (0.003, 0.001),
    "pen-human-v1": (0.1, 0.5),
    "pen-cloned-v1": (0.05, 0.5),
    "pen-expert-v1": (0.01, 0.01),
    "door-human-v1": (0.1, 0.1),
    "door-cloned-v1": (0.01, 0.1),
    "door-expert-v1": (0.05, 0.01),
    "hammer-human-v1": (0.01, 0.5),
    "hammer-cloned-v1": (0.1, 0.5),
    "hammer-expert-v1": (0.01, 0.01),
    "relocate-human-v1": (0.1, 0.01),
    "relocate-cloned-v1": (0.1, 0.01),
    "relocate-expert-v1": (0.05, 0.01),
}
_SLOWER = Config(batch_size=256, actor_learning_rate=3e-4, critic_learning_rate=3e-4)
_ANTMAZE = dataclasses.replace(
    _SLOWER, discount=0.999, critic_learning_rate=5e-5, reward_multiplier=100.0
)
_OTHERS = dict.fromkeys((*d4rl.MAZE2D, *d4rl.ADROIT), _SLOWER) | dict.fromkeys(
    d4rl.ANTMAZE, _ANTMAZE
)
_OURS = {
    "Pendulum-v1": Config(total_updates=50_000, batch_size=256, hidden_sizes=(256, 256)),
    "HalfCheetah-v4": Config(total_updates=200_000),
    "Hopper-v4": Config(total_updates=200_000),
}
_D4RL = {
    name: dataclasses.replace(
        _OTHERS.get(name, Config()), actor_penalty=actor, critic_penalty=critic
    )
    for name, (actor, critic) in _PENALTIES.items()
}
PRESETS = from_datasets("rebrac", _OURS, _D4RL)
