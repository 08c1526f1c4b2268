"""IMPALA's presets: `python -m launch.train --agent=impala --env=NAME` starts from that name's.

"Cleanba" is the set of its IMPALA on Atari (Huang et al. 2023, arXiv:2310.00036). Its losses are
sums over the rows of a minibatch and ours are means, so its max_grad_norm of 40 and ε of 0.01 are
divided by the 640 rows. Its two actors run one update ahead: --actor_threads=2 --staleness=1.
"RL Zoo" is the table of rl-baselines3-zoo, there at a constant rate and for A2C, which IMPALA is in
step with its actors.
"""

import functools

from agents.impala import Config
from launch.presets import preset
from rljax.nn.torsos import Torso

_CARTPOLE = Config(
    total_steps=500_000,
    num_envs=8,
    rollout_length=5,
    learning_rate=7e-4,
    entropy_cost=0.0,
    value_cost=1.0,
)
_ATARI = Config(
    total_steps=50_000_000,
    num_envs=128,
    rollout_length=20,
    num_minibatches=4,  # of 640
    learning_rate=6e-4,
    optimizer_epsilon=0.01 / 640,
    max_grad_norm=40 / 640,
    torso=Torso.IMPALA,
)
_ATARI_OPTIONS = (
    ("full_action_space", True),
    ("repeat_action_probability", 0.25),
    ("reward_clip", True),
)
_preset = functools.partial(preset, "impala")


PRESETS = {
    "CartPole-v1": _preset(
        "CartPole-v1", _CARTPOLE, "RL Zoo, of A2C, annealed", "not measured", "not measured"
    ),
    "rljax:cartpole": _preset(
        "rljax:cartpole",
        _CARTPOLE,
        "as CartPole-v1",
        "not measured",
        "500.0 (100 greedy episodes each of seeds 0, 1); at most 500",
    ),
    "Pong-v5": _preset(
        "Pong-v5",
        _ATARI,
        "Cleanba",
        "not measured",
        "not measured; published: 19.09",
        _ATARI_OPTIONS,
    ),
    "Breakout-v5": _preset(
        "Breakout-v5",
        _ATARI,
        "Cleanba",
        "not measured",
        "not measured; published: 482.1",
        _ATARI_OPTIONS,
    ),
}
