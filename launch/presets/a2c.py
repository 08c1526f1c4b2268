"""A2C's presets: `python -m launch.train --agent=a2c --env=NAME` starts from that name's.

"RL Zoo" is the table of tuned hyper-parameters of rl-baselines3-zoo, there at a constant rate; its
value loss has no ½, so that 0.5 there is value_cost=1 here.
"""

import functools

from agents.a2c import Config
from launch.presets import preset

_CARTPOLE = Config(total_steps=500_000, entropy_cost=0.0, value_cost=1.0)
_preset = functools.partial(preset, "a2c")


PRESETS = {
    "CartPole-v1": _preset("CartPole-v1", _CARTPOLE, "RL Zoo, annealed"),
    "rljax:cartpole": _preset(
        "rljax:cartpole", _CARTPOLE, "as CartPole-v1", score="not measured; at most 500"
    ),
}
