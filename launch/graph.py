"""Training in the graph, and many runs of it in one program: from flags to the loop's config.

    --num_seeds=4                                           seeds --seed, --seed + 1, ...
    --vary='learning_rate:1e-3,3e-4;entropy_cost:0,0.01'    all four pairs, each with every seed

Runs are numbered from 0: the seeds of the first pair, those of the second, and so on. What can
vary is what an agent keeps in its train state (`schedules`). One run of an environment in the
graph is trained so too, without any flag. Imports no JAX before a loop's config is made.
"""

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Any

from launch.experiment import ActorKind, Experiment, Parallel, Vary
from rljax import registry
from rljax.config import UsageError

if TYPE_CHECKING:
    from rljax.loops import in_graph

_LINES = 100  # of metrics that a run writes if nobody says how many
_EXAMPLE = "--vary='learning_rate:1e-3,3e-4;entropy_cost:0,0.01'"


def vary(text: str) -> Vary:
    """What --vary says: names with their values.

    Raises:
        UsageError: it says nothing that can be understood, or one thing twice.
    """
    varied: dict[str, tuple[float, ...]] = {}
    for part in filter(None, text.split(";")):
        name, _, values = part.partition(":")
        name = name.strip()
        try:
            numbers = tuple(float(value) for value in values.split(","))
        except ValueError:
            numbers = ()
        if not name or not numbers or not all(map(math.isfinite, numbers)):
            raise UsageError(f"--vary={text}: {part!r} is no name with values, as {_EXAMPLE} has.")
        if name in varied or len(set(numbers)) < len(numbers):
            raise UsageError(f"--vary={text} has a name, or a value of {name}, twice.")
        varied[name] = numbers
    return tuple(varied.items())


def check_values(agent: str, config: Any, varied: Vary) -> None:
    """Raises ValueError where a value to vary could not be that field of the agent's config."""
    fields = {field.name for field in dataclasses.fields(config)}
    known = [[(name, value) for value in values] for name, values in varied if name in fields]
    for settings in itertools.product(*known):
        registry.agent_module(agent).validate(dataclasses.replace(config, **dict(settings)))


def applies(experiment: Experiment, inner: Any) -> bool:
    """Whether the in-graph loop is to train this run, whose agent has the loop `inner`.

    Where it can, and where several runs are wanted: `in_graph.check` tells if they cannot be.
    """
    import jax

    from rljax import sources
    from rljax.loops import on_policy

    if experiment.num_seeds > 1 or experiment.vary:
        return True
    return (
        isinstance(inner, on_policy.Config)
        and sources.is_in_graph(experiment.source.name)
        and experiment.actors.kind is ActorKind.NONE
        and experiment.parallel is Parallel.SHARD_MAP
        and jax.process_count() == 1
    )


def loop(experiment: Experiment, inner: Any) -> "in_graph.Config":
    """The in-graph loop around the agent's own; its calls end where something is due.

    Raises:
        ValueError: the agent does not learn from rollouts, or there are actors besides.
    """
    from rljax.loops import in_graph, on_policy

    if not isinstance(inner, on_policy.Config):
        raise ValueError(
            "--num_seeds and --vary are for agents that learn from rollouts, such as ppo or "
            f"impala; {experiment.agent} learns from replay."
        )
    actors = experiment.actors.kind
    if actors is not ActorKind.NONE:
        raise ValueError(
            "--num_seeds and --vary train in the graph, where no actors collect: leave them out, "
            f"or --actors={actors.value}."
        )
    config = in_graph.Config(inner, experiment.num_seeds, experiment.vary)
    every = (experiment.checkpoint_every, experiment.eval_every, log_rows(experiment, config))
    return dataclasses.replace(config, cadences=tuple(sorted({rows for rows in every if rows})))


def log_rows(experiment: Experiment, loop_config: Any) -> int:
    """Rows between two lines of metrics.

    Unless --log_every says it, that is one update, or in the graph a hundredth of the run: each
    line is a return to Python.
    """
    from rljax.loops import in_graph, offline

    updates = experiment.log_every
    if not updates and isinstance(loop_config, in_graph.Config | offline.Config):
        updates = loop_config.last_step // loop_config.rows // _LINES
    return max(1, updates or 1) * loop_config.rows
