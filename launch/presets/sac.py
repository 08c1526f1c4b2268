"""SAC's presets: `python -m launch.train --agent=sac --env=NAME` starts from the one of that name.

"RL Zoo" is the table of tuned hyper-parameters of rl-baselines3-zoo: one update for each row of
experience, which these keep. Theirs collect in one environment, ours in four.
"""

import functools

from agents.sac import Config
from launch.presets import Preset, preset

_PENDULUM = Config(
    total_steps=20_000,
    learning_starts=100,
    replay_capacity=20_000,  # all there are
    learning_rate=1e-3,
)
_MUJOCO = Config()
_CARTPOLE = Config(
    total_steps=50_000,
    num_envs=8,
    rollout_length=4,
    num_updates=16,  # one for 2 rows
    learning_starts=1_000,
    replay_capacity=50_000,
    batch_size=64,
    learning_rate=5e-4,  # at 1e-3 one run of three falls back from 500 towards the end
    # At 0.005, which suits boxes, values of 100 steps ahead do not arrive within the run.
    target_rate=0.02,
    target_entropy_fraction=0.2,
)
_SHARED = "under 3 min, on a machine with much else to do"
_preset = functools.partial(preset, "sac")


def _mujoco(env: str, published: str) -> Preset:
    return _preset(
        env, _MUJOCO, "RL Zoo", "not measured", f"not measured; published: {published} on v3"
    )


PRESETS = {
    "Pendulum-v1": _preset(
        "Pendulum-v1", _PENDULUM, "RL Zoo", "about 1 min", "-160.3, 3 seeds; published: -157.0"
    ),
    "HalfCheetah-v4": _mujoco("HalfCheetah-v4", "9535.5"),
    "Hopper-v4": _mujoco("Hopper-v4", "2325.5"),
    "Walker2d-v4": _mujoco("Walker2d-v4", "3863.2"),
    "Ant-v4": _mujoco("Ant-v4", "4615.8"),
    "CartPole-v1": _preset("CartPole-v1", _CARTPOLE, "ours", _SHARED, "not measured"),
    "rljax:pendulum": _preset(
        "rljax:pendulum",
        _PENDULUM,
        "as Pendulum-v1",
        "under 6 min, on a machine with much else to do",
        "-146.1 (1 seed, 100 episodes)",
    ),
    "rljax:cartpole": _preset(
        "rljax:cartpole", _CARTPOLE, "as CartPole-v1", _SHARED, "500 (seeds 4, 5; 20 episodes each)"
    ),
}
