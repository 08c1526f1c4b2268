"""D4RL's datasets (Fu et al. 2020, arXiv:2004.07219): names, and what CORL publishes of them.

Scores are CORL's last of four seeds, from the README of its commit 6afec90, normalized as D4RL
does. docs/benchmarks.md has them with their deviations.
"""

_AGENTS = ("bc", "td3_bc", "cql", "iql", "rebrac")
_ROWS = """
halfcheetah-medium-v2 42.40 48.10 47.04 48.31 64.04
halfcheetah-medium-replay-v2 35.66 44.84 45.04 44.46 51.18
halfcheetah-medium-expert-v2 55.95 90.78 95.63 94.74 103.80
hopper-medium-v2 53.51 60.37 59.08 67.53 102.29
hopper-medium-replay-v2 29.81 64.42 95.11 97.43 94.98
hopper-medium-expert-v2 52.30 101.17 99.26 107.42 109.45
walker2d-medium-v2 63.23 82.71 80.75 80.91 85.82
walker2d-medium-replay-v2 21.80 85.62 73.09 82.15 84.25
walker2d-medium-expert-v2 98.96 110.03 109.56 111.72 111.86
maze2d-umaze-v1 0.36 29.41 -8.90 42.11 106.87
maze2d-medium-v1 0.79 59.45 86.11 34.85 105.11
maze2d-large-v1 2.26 97.10 23.75 61.72 78.33
antmaze-umaze-v2 55.25 70.75 92.75 77.00 97.75
antmaze-umaze-diverse-v2 47.25 44.75 37.25 54.25 83.50
antmaze-medium-play-v2 0.00 0.25 65.75 65.75 89.50
antmaze-medium-diverse-v2 0.75 0.25 67.25 73.75 83.50
antmaze-large-play-v2 0.00 0.00 20.75 42.00 52.25
antmaze-large-diverse-v2 0.00 0.00 20.50 30.25 64.00
pen-human-v1 71.03 -3.88 13.71 78.49 103.16
pen-cloned-v1 51.92 5.13 1.04 83.42 102.79
pen-expert-v1 109.65 122.53 -1.41 128.05 152.16
door-human-v1 2.34 -0.33 5.53 3.26 -0.10
door-cloned-v1 -0.09 -0.34 -0.33 3.07 0.06
door-expert-v1 105.35 -0.33 -0.32 106.65 106.37
hammer-human-v1 3.03 1.02 0.14 1.79 0.24
hammer-cloned-v1 0.55 0.25 0.30 1.50 5.00
hammer-expert-v1 126.78 3.11 0.26 128.68 133.62
relocate-human-v1 0.04 -0.29 0.06 0.12 0.16
relocate-cloned-v1 -0.06 -0.30 -0.29 0.04 1.66
relocate-expert-v1 107.58 -1.73 -0.30 106.11 107.52
"""
PUBLISHED: dict[str, dict[str, str]] = {  # by dataset, by agent
    name: dict(zip(_AGENTS, scores, strict=True))
    for name, *scores in map(str.split, _ROWS.strip().splitlines())
}
_ENVS = {"halfcheetah": "HalfCheetah-v4", "hopper": "Hopper-v4", "walker2d": "Walker2d-v4"}


def env(name: str) -> str | None:
    """The environment that a dataset is of; None if it is not one of EnvPool's or Gymnasium's."""
    return _ENVS.get(name.partition("-")[0])


def of(*tasks: str) -> tuple[str, ...]:
    """The datasets of these tasks."""
    return tuple(name for name in PUBLISHED if name.partition("-")[0] in tasks)


LOCOMOTION, ANTMAZE, MAZE2D = of(*_ENVS), of("antmaze"), of("maze2d")
ADROIT = of("pen", "door", "hammer", "relocate")
