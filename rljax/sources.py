"""Where experience comes from: `open(source)` gives an object with a `.spec`.

    CartPole-v1              EnvPool if it has the task, else Gymnasium
    envpool:Pong-v5          EnvPool or nothing
    gymnasium:CartPole-v1    Gymnasium or nothing
    rljax:cartpole           an in-graph environment of ours (a `JaxEnv`)
    gymnax:CartPole-v1       in the graph too: a task of Gymnax, Brax (brax:ant), MuJoCo Playground
                             (playground:CartpoleBalance) or NAVIX (navix:Navix-Empty-5x5-v0)

Datasets and prompts join here as sources of their own.
"""

import dataclasses
import difflib
import importlib
import inspect
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from rljax import config as configs
from rljax.envs import ADAPTERS, IN_GRAPH, host_envpool, host_gymnasium, wrappers
from rljax.envs.base import HostEnv, JaxEnv
from rljax.types import EnvSpec


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
    if prefix in ADAPTERS:
        adapted = importlib.import_module(ADAPTERS[prefix]).make(name, options)
        return wrappers.autoreset(adapted)
    host = {"envpool": host_envpool, "gymnasium": host_gymnasium}[prefix]
    env = host.make(
        name, source.num_envs, source.seed, num_threads=source.num_threads, options=options
    )
    env.spec = dataclasses.replace(env.spec, name=source.name)
    return env


class Pools(NamedTuple):
    """One source split into pools of equally many environments: one pool for each actor."""

    spec: EnvSpec
    sources: tuple[EnvSource, ...]
    envs: tuple[HostEnv | JaxEnv, ...]  # one a source; one alone where actors open their own


def split(source: EnvSource, count: int) -> tuple[EnvSource, ...]:
    """`count` sources of equally many environments, which together are those of `source`.

    No seed is in two of them. Where EnvPool may use every core, each pool gets its share of them.

    Raises:
        ValueError: the environments cannot be split so.
    """
    if count < 1 or source.num_envs % count:
        raise ValueError(
            f"num_envs={source.num_envs} cannot be split over {count} actors: "
            "choose a multiple of the number of actors."
        )
    each = source.num_envs // count
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = source.num_threads
    if count > 1 and not threads:
        threads = max(1, (cores or 1) // count)
    return tuple(
        dataclasses.replace(source, num_envs=each, seed=source.seed + i * each, num_threads=threads)
        for i in range(count)
    )


def open_pools(source: EnvSource, count: int) -> Pools:
    """Opens the environments of a source as `count` pools; raises what `split` and `open` raise."""
    sources = split(source, count)
    envs: list[HostEnv | JaxEnv] = []
    try:
        for each in sources:
            envs.append(open(each))
    except BaseException:
        for env in envs:
            if isinstance(env, HostEnv):
                env.close()
        raise
    return Pools(envs[0].spec, sources, tuple(envs))


def describe_pools(source: EnvSource, count: int) -> Pools:
    """The pools that `count` actors elsewhere will open; here, one environment stands for them.

    Raises what `split` and `open` raise.
    """
    env = open(dataclasses.replace(source, num_envs=1))
    return Pools(env.spec, split(source, count), (env,))


def is_in_graph(name: str) -> bool:
    """Whether a name is of an environment that consists of JAX functions, a `JaxEnv`."""
    return name.partition(":")[0] in ("rljax", *ADAPTERS)


def resolve(name: str) -> tuple[str, str]:
    """The prefix and the name behind it, for a name with or without one.

    Raises:
        ValueError: the prefix is unknown, or a name without one is.
    """
    prefix, colon, rest = name.partition(":")
    if colon:
        known = ("envpool", "gymnasium", "rljax", *ADAPTERS)
        if prefix not in known:
            told = ", ".join(f"{source}:" for source in known)
            raise ValueError(f"{name!r} names no source {prefix!r}; there are {told}.")
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
    fields = [(known[option].name, known[option].annotation) for option in options]
    try:
        configs.from_json(dataclasses.make_dataclass("Options", fields), options)
    except ValueError as error:  # a value of the wrong type
        raise ValueError(f"rljax:{name}: {error}") from error
    return make(**options)
