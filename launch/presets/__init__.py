"""Tuned configs: one file per agent, found by listing this folder, with one entry per environment.

A file `launch/presets/<agent>.py` defines `PRESETS: dict[str, Preset]`, keyed by environment name.
"""

import dataclasses
import importlib
import pkgutil
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
