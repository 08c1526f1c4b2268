"""The flags of actors: from a command line to `Actors`, and from there to the loop's config.

    --actor_threads=2                       two threads; so are --actors=threads --num_actors=2
    --actors=ray --num_actors=4             four processes of Ray

Imports no JAX before a loop's config is made.
"""

from typing import TYPE_CHECKING, Any

from launch.experiment import ActorKind, Actors, Experiment
from rljax.config import UsageError

if TYPE_CHECKING:
    from rljax.loops import actor_learner, on_policy

_KINDS = "--actors=threads or --actors=ray"
FLAGS: dict[str, tuple[Any, str, int | None]] = {  # name -> type, help, minimum; unset by default
    "actors": (ActorKind, "Who collects, if not the learner: threads of it, or ray.", None),
    "num_actors": (int, f"Actors among which environments are divided, with {_KINDS}.", 1),
    "actor_threads": (int, "Short for --actors=threads --num_actors=N.", 1),
    "actor_devices": (
        tuple[int, ...],
        "Local devices where threads act, in turn; default: 0.",
        None,
    ),
    "learner_devices": (
        tuple[int, ...],
        "Local devices that learn, in runs with actors; default: as --num_devices says.",
        None,
    ),
    "staleness": (
        int,
        "Updates that the actors' policy may lag behind; default: 0; 1: they collect while the "
        "learner learns.",
        0,
    ),
    "actor_timeout": (float, "Seconds that a rollout may take an actor; default: 600.", None),
    "actor_restarts": (int, "Deaths in a row that a Ray actor is spared; default: 3.", 0),
    "ray_address": (str, "Of a running Ray cluster; default: one is started here.", None),
}


def read(values: Any) -> Actors:
    """The actors that parsed flags ask for.

    Raises:
        UsageError: flags that contradict each other, or that would change nothing.
    """
    kind = values.actors
    if values.actor_threads is not None:
        if kind not in (None, ActorKind.THREADS):
            raise UsageError(
                f"--actor_threads={values.actor_threads} asks for threads, and "
                f"--actors={kind.value} does not: give one of them."
            )
        if values.num_actors not in (None, values.actor_threads):
            raise UsageError(
                f"--actor_threads={values.actor_threads} and --num_actors={values.num_actors} "
                "contradict each other: give one of them."
            )
        kind = ActorKind.THREADS
    if kind in (None, ActorKind.NONE):
        _refuse(values, FLAGS.keys() - {"actors"}, f"add {_KINDS}")
        return Actors()
    if kind is ActorKind.THREADS:
        _refuse(values, ("actor_restarts", "ray_address"), "use --actors=ray")
    else:
        _refuse(values, ("actor_devices",), "use --actors=threads; those of Ray act on CPUs")
    if values.learner_devices and values.num_devices:
        raise UsageError(
            "--learner_devices names the devices that learn: leave --num_devices out, or this."
        )
    given = {
        "num_actors": values.num_actors or values.actor_threads,
        "devices": values.actor_devices,
        "learner_devices": values.learner_devices,
        "staleness": values.staleness,
        "timeout_seconds": values.actor_timeout,
        "max_restarts": values.actor_restarts,
        "ray_address": values.ray_address,
    }
    return Actors(kind, **{name: value for name, value in given.items() if value is not None})


def loop(experiment: Experiment, inner: "on_policy.Config") -> "actor_learner.Config":
    """The actor–learner loop around the agent's own.

    Raises:
        ValueError: the agent does not learn from rollouts.
    """
    from rljax.actors.ray_actors import Ray
    from rljax.actors.threads import Threads
    from rljax.loops import actor_learner, on_policy

    asked = experiment.actors
    if not isinstance(inner, on_policy.Config):
        raise ValueError(
            f"--actors={asked.kind.value} is for agents that learn from rollouts, such as impala "
            f"or ppo; {experiment.agent} learns from replay."
        )
    if asked.kind is ActorKind.THREADS:
        actors = Threads(asked.devices)
    else:
        actors = Ray(experiment.agent, experiment.config, asked.ray_address, asked.max_restarts)
    return actor_learner.Config(
        inner,
        actors,
        asked.num_actors,
        asked.staleness,
        asked.learner_devices,
        asked.timeout_seconds,
    )


def _refuse(values: Any, names: Any, remedy: str) -> None:
    for name in FLAGS:
        if name in names and values[name].value is not None:
            raise UsageError(f"--{name} changes nothing here: {remedy}, or leave it out.")
