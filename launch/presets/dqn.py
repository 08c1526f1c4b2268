"""DQN's presets: `python -m launch.train --agent=dqn --env=NAME` starts from the one of that name.

"RL Zoo" is the table of tuned hyper-parameters of rl-baselines3-zoo, whose updates per row of
experience these keep: theirs collect in one environment, ours in several. A period of the target
network is counted in updates here, in rows there; and ours are double, theirs are not, except for
CartPole's. That learns from squared errors at 5e-4, where theirs has Huber's at 2.3e-3: at their
rate, or double with Huber's, runs reach 500 and then fall back to 100 or 300. DQN forgets: one
seed may, where others do not.
"""

import functools

from agents.dqn import Config
from launch.presets import preset

# There the target moves every 10 rows, of which 256 pass between two rounds of 128 updates: it is
# the network that each round starts from.
_CARTPOLE = Config(
    total_steps=50_000,
    num_envs=8,
    rollout_length=32,
    num_updates=128,  # one for 2 rows
    learning_starts=1_000,
    replay_capacity=100_000,
    batch_size=64,
    learning_rate=5e-4,
    target_period=128,
    exploration_fraction=0.16,
    final_epsilon=0.04,
    double=False,
    huber_threshold=1e6,  # squared errors: none is larger
)
_SHARED = "under 2 min, on a machine with much else to do"
_ACROBOT = Config(
    total_steps=100_000,
    num_envs=4,
    rollout_length=1,
    num_updates=4,  # one for each row
    learning_starts=0,
    replay_capacity=50_000,
    batch_size=128,
    learning_rate=6.3e-4,
    target_period=250,
    exploration_fraction=0.12,
    final_epsilon=0.1,
)
_ATARI = Config(
    total_steps=10_000_000,
    num_envs=8,
    rollout_length=4,
    num_updates=8,  # one for 4 rows
    learning_starts=100_000,
    replay_capacity=100_000,
    batch_size=32,
    learning_rate=1e-4,
    target_period=250,  # 1,000 rows
    exploration_fraction=0.1,
    final_epsilon=0.01,
)
_preset = functools.partial(preset, "dqn")


PRESETS = {
    "CartPole-v1": _preset(
        "CartPole-v1",
        _CARTPOLE,
        "RL Zoo",
        _SHARED,
        "497 (interquartile mean of seeds 10 to 14, 50 episodes each: 500, 396, 500, 500, 491); "
        "500.0 on seeds 0 to 2; published: 500.0",
    ),
    "Acrobot-v1": _preset(
        "Acrobot-v1",
        _ACROBOT,
        "RL Zoo",
        "not measured",
        "not measured at 100k; -73 with a tenth of actions random at 1M; published: -76.6",
    ),
    "LunarLander-v3": _preset(
        "LunarLander-v3", _ACROBOT, "RL Zoo", "not measured", "not measured; published: 154.4 on v2"
    ),
    "Pong-v5": _preset(
        "Pong-v5", _ATARI, "RL Zoo", "not measured", "not measured; published: 20.6"
    ),
    "Breakout-v5": _preset(
        "Breakout-v5", _ATARI, "RL Zoo", "not measured", "not measured; published: 358.3"
    ),
    "rljax:cartpole": _preset(
        "rljax:cartpole",
        _CARTPOLE,
        "RL Zoo",
        _SHARED,
        "500.0 (3 seeds, 100 episodes each)",
    ),
}
