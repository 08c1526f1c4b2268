"""DAgger's presets, by environment; each asks what PPO's preset has trained there."""

import dataclasses

from agents.bc import Loss
from agents.dagger import Config
from launch.presets import Preset, preset

_SMALL = Config(hidden_sizes=(64, 64))
_PENDULUM = Config(hidden_sizes=(64, 64), loss=Loss.SQUARED_ERROR)


def _taught(env: str, config: Config, score: str = "not measured") -> Preset:
    wall_clock = "not measured" if score == "not measured" else "1 minute, on a busy machine"
    plain = preset("dagger", env, config, "ours", wall_clock, score)
    expert = f"--expert=runs/ppo-{env.replace(':', '-')}"
    return dataclasses.replace(plain, command=f"{plain.command} {expert}")


PRESETS = {
    "CartPole-v1": _taught("CartPole-v1", _SMALL, "500.0 in 100 episodes of seed 0, as its expert"),
    "rljax:cartpole": _taught("rljax:cartpole", _SMALL),
    "Pendulum-v1": _taught(
        "Pendulum-v1", _PENDULUM, "-166 in 100 episodes of seed 0, and its expert -179; ± 10 each"
    ),
}
