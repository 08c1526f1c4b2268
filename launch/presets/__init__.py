"""Tuned configs: one file per agent, found by listing this folder, with one entry per environment.

A file `launch/presets/<agent>.py` defines `PRESETS: dict[str, Preset]`, keyed by environment name.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from launch import d4rl


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
    agent: str, ours: Mapping[str, Any], of_d4rl: Mapping[str, Any]
) -> dict[str, Preset]:
    """Presets of an agent that learns from a dataset: configs by environment, and by D4RL's name.

    The environment does not tell which of D4RL's datasets it is: --preset=hopper-medium-v2 asks for
    one.
    """
    presets = {
        env: dataclasses.replace(
            preset(agent, env, config, "ours"),
            command=f"python -m launch.train --agent={agent} --dataset=data/medium --env={env} "
            f"--workdir=runs/{agent}-{env}",
        )
        for env, config in ours.items()
    }
    for name, config in of_d4rl.items():
        score, env = "not measured", d4rl.env(name)
        if name in d4rl.PUBLISHED:
            score += f"; published: {d4rl.PUBLISHED[name][agent]}, normalized (CORL)"
        names = f"--preset={name} --dataset=data/{name}.hdf5" + (f" --env={env}" if env else "")
        presets[name] = Preset(
            config=config,
            command=f"python -m launch.train --agent={agent} {names} --workdir=runs/{agent}-{name}",
            source="CORL's configs",
            hardware="2 CPU cores",
            wall_clock="not measured",
            score=score,
        )
    return presets
