"""A2C's presets: `python -m launch.train --agent=a2c --env=NAME` starts from that name's.

"RL Zoo" is the table of tuned hyper-parameters of rl-baselines3-zoo, there at a constant rate; its
value loss has no ½, so that 0.5 there is value_cost=1 here.
"""

from agents.a2c import Config
from launch.presets import Preset

_CARTPOLE = Config(total_steps=500_000, entropy_cost=0.0, value_cost=1.0)


def _preset(env: str, wall_clock: str, score: str) -> Preset:
    workdir = f"runs/a2c-{env.replace(':', '-')}"
    return Preset(
        config=_CARTPOLE,
        command=f"python -m launch.train --agent=a2c --env={env} --workdir={workdir}",
        source="RL Zoo, annealed",
        hardware="2 CPU cores",
        wall_clock=wall_clock,
        score=score,
    )


PRESETS = {
    "CartPole-v1": _preset("CartPole-v1", "not measured", "not measured"),
    "rljax:cartpole": _preset("rljax:cartpole", "not measured", "not measured; at most 500"),
}
