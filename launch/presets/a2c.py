"""A2C's presets: `python -m launch.train --agent=a2c --env=NAME` starts from that name's."""

from agents.a2c import Config
from launch.presets import Preset
from rljax.optim import Optimizer

_CARTPOLE = Config(
    total_steps=300_000,
    num_envs=32,
    rollout_length=20,
    optimizer=Optimizer.ADAM,
    learning_rate=2e-3,
    discount=0.98,
)


def _preset(env: str, wall_clock: str, score: str) -> Preset:
    workdir = f"runs/a2c-{env.replace(':', '-')}"
    return Preset(
        config=_CARTPOLE,
        command=f"python -m launch.train --agent=a2c --env={env} --workdir={workdir}",
        source="our own",
        hardware="2 CPU cores",
        wall_clock=wall_clock,
        score=score,
    )


PRESETS = {
    "CartPole-v1": _preset("CartPole-v1", "not measured", "not measured"),
    "rljax:cartpole": _preset("rljax:cartpole", "not measured", "not measured; at most 500"),
}
