"""Where experience comes from: `open(source)` gives an object with a `.spec`.

    CartPole-v1              EnvPool if it has the task, else Gymnasium
    envpool:Pong-v5          EnvPool or nothing
    gymnasium:CartPole-v1    Gymnasium or nothing
    rljax:cartpole           an in-graph environment of ours (a `JaxEnv`)

Datasets and prompts join here as sources of their own.
"""

import dataclasses
import difflib
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from rljax.envs import IN_GRAPH, host_envpool, host_gymnasium, wrappers
from rljax.envs.base import HostEnv, JaxEnv


@dataclasses.dataclass(frozen=True)
class EnvSource:
    """An environment by name, and how many of it; hashable, so fit for a frozen config."""

    name: str  # as above
    num_envs: int
    seed: int = 0  # environment i gets seed + i; in-graph ones draw from the keys they are given
    num_threads: int = 0  # EnvPool's; 0 is one per core
    options: tuple[tuple[str, object], ...] = ()  # the task's own, e.g. ("max_episode_steps", 6)


def open(source: EnvSource) -> HostEnv | JaxEnv:
    """Opens the environments of a source; a `JaxEnv` is a single one, with autoreset.

    Raises:
        ImportError: a package that the environment needs is not installed.
        ValueError: the name, an option or a number is wrong; the sentence says what would be right.
    """
    if source.num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, not {source.num_envs}.")
    prefix, name = resolve(source.name)
    options = dict(source.options)
    if prefix == "rljax":
        return wrappers.autoreset(_in_graph(name, options))
    host = {"envpool": host_envpool, "gymnasium": host_gymnasium}[prefix]
    env = host.make(
        name, source.num_envs, source.seed, num_threads=source.num_threads, options=options
    )
    env.spec = dataclasses.replace(env.spec, name=source.name)
    return env


def resolve(name: str) -> tuple[str, str]:
    """The prefix and the name behind it, for a name with or without one.

    Raises:
        ValueError: the prefix is unknown, or a name without one is.
    """
    prefix, colon, rest = name.partition(":")
    if colon:
        if prefix not in ("envpool", "gymnasium", "rljax"):
            raise ValueError(
                f"{name!r} names no source {prefix!r}; there are envpool:, gymnasium: and rljax:."
            )
        return prefix, rest
    if name in host_envpool.names():
        return "envpool", name
    if name in host_gymnasium.names():
        return "gymnasium", name
    known = {task: f"rljax:{task}" for task in IN_GRAPH}
    known |= {task: task for task in (*host_gymnasium.names(), *host_envpool.names())}
    close = ", ".join(known[task] for task in difflib.get_close_matches(name, known))
    raise ValueError(
        f"There is no environment {name!r} in EnvPool, in Gymnasium or in the graph; "
        f"near it: {close or 'none'}."
    )


def _in_graph(name: str, options: Mapping[str, Any]) -> JaxEnv:
    if name not in IN_GRAPH:
        raise ValueError(
            f"There is no in-graph environment {name!r}; there are {', '.join(IN_GRAPH)}."
        )
    make = importlib.import_module(IN_GRAPH[name]).make
    known = inspect.signature(make).parameters
    for option in options:
        if option not in known:
            told = ", ".join(known) or "none"
            raise ValueError(f"rljax:{name} has no option {option!r}; its options: {told}.")
    return make(**options)
