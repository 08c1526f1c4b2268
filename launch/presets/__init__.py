"""Tuned configs: one file per agent, found by listing this folder, with one entry per environment.

A file `launch/presets/<agent>.py` defines `PRESETS: dict[str, Preset]`, keyed by environment name.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Preset:
    """A config that was run: where it comes from, how to repeat it, what to expect."""

    config: Any  # the agent's Config
    command: str  # that trains it, exactly
    source: str  # of the values
    hardware: str  # that the next two were measured on
    wall_clock: str
    score: str  # mean return of how many episodes and seeds, beside the published one
    env_options: tuple[tuple[str, object], ...] = ()  # where --env_options gives none; by name


def preset(
    agent: str,
    env: str,
    config: Any,
    source: str,
    wall_clock: str = "not measured",
    score: str = "not measured",
    env_options: tuple[tuple[str, object], ...] = (),
) -> Preset:
    """A preset whose command is `launch.train` with nothing but the two names and a workdir."""
    workdir = f"runs/{agent}-{env.replace(':', '-')}"
    return Preset(
        config=config,
        command=f"python -m launch.train --agent={agent} --env={env} --workdir={workdir}",
        source=source,
        hardware="2 CPU cores",
        wall_clock=wall_clock,
        score=score,
        env_options=env_options,
    )


def load(agent: str) -> dict[str, Preset]:
    """The presets of one agent by environment, {} if it has none; imports that agent only."""
    if agent not in {module.name for module in pkgutil.iter_modules(__path__)}:
        return {}
    return importlib.import_module(f"{__name__}.{agent}").PRESETS


def from_datasets(
    agent: str,
    ours: Mapping[str, Any],
    d4rl: Mapping[str, Any],
    published: Mapping[str, str],
) -> dict[str, Preset]:
    """Presets of an agent that learns from a dataset: configs by environment, and by D4RL's name.

    `published` are normalized scores that go with D4RL's, where there are some. The environment
    does not tell which of D4RL's datasets it is: --preset=hopper-medium-v2 asks for one.
    """
    presets = {
        env: dataclasses.replace(
            preset(agent, env, config, "ours"),
            command=f"python -m launch.train --agent={agent} --dataset=data/medium --env={env} "
            f"--workdir=runs/{agent}-{env}",
        )
        for env, config in ours.items()
    }
    for name, config in d4rl.items():
        env, score = _D4RL_ENVS[name.partition("-")[0]], "not measured"
        if name in published:
            score += f"; published: {published[name]}, normalized, on v2 (CORL)"
        presets[name] = Preset(
            config=config,
            command=f"python -m launch.train --agent={agent} --preset={name} "
            f"--dataset=data/{name}.hdf5 --env={env} --workdir=runs/{agent}-{name}",
            source="CORL's configs",
            hardware="2 CPU cores",
            wall_clock="not measured",
            score=score,
        )
    return presets


_D4RL_ENVS = {"halfcheetah": "HalfCheetah-v4", "hopper": "Hopper-v4", "walker2d": "Walker2d-v4"}
D4RL_NAMES = tuple(
    f"{env}-{level}-v2"
    for env in _D4RL_ENVS
    for level in ("medium", "medium-replay", "medium-expert")
)
