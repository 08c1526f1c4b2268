"""What every fleet of actors offers its learner: jobs go down, rollouts come up, in one order.

    fleet.submit(job)         hands a job to every actor; never waits for them to finish
    fleet.gather(number)      the rollouts of that job, one an actor, in the actors' order
    fleet.close()             ends every actor

A job names its policy, so what is collected does not depend on how fast anybody is; nor, thanks to
`rljax.row_keys`, on how many actors there are. The learner hands out at most `staleness + 1` jobs
ahead of what it has gathered: that bounds every queue.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from jax import Array

from rljax import rollout, row_keys
from rljax.agent import Agent
from rljax.config import UsageError
from rljax.types import Episodes, Trajectory


class ActorError(UsageError):
    """An actor failed, hangs or cannot start: one sentence that names it and what it was doing."""


class Work(NamedTuple):
    """What the actors of one fleet have in common."""

    agent: Agent
    first_rows: tuple[int, ...]  # of each actor: where its environments stand among all
    num_envs: int  # of each actor
    length: int  # rows of a rollout
    collector: rollout.Kind
    start_key: Array  # in-graph environments start from it
    staleness: int  # how many jobs may be waiting besides the one that is being done
    timeout_seconds: float  # how long the learner waits for a rollout, or for an actor's start

    def key_of(self, actor: int, key: Array) -> Array:
        """The key by which an actor draws what one actor of all environments would for its own."""
        return row_keys.starting_at(self.first_rows[actor], key)


class Job(NamedTuple):
    """One rollout for every actor."""

    number: int  # of the update that learns from it
    version: int  # of the policy: how many updates it has behind it
    policy: Any
    key: Array  # of all environments; `Work.key_of` makes an actor's of it


class Rollout(NamedTuple):
    """What an actor made of a job."""

    number: int
    version: int
    state: rollout.RolloutState | None  # where it ended, if a checkpoint can bring it back
    trajectory: Trajectory  # of this actor's environments
    episodes: Episodes
    seconds: dict[str, float]  # metric -> what the actor spent on it


@runtime_checkable
class Fleet(Protocol):
    """Actors, numbered from 0; see the module for what the functions do."""

    restarts: int  # actors that died and were started anew, so far

    def submit(self, job: Job) -> None:
        """Hands a job to every actor; the policy may not be donated afterwards."""
        ...

    def gather(self, number: int) -> list[Rollout]:
        """Waits for all actors' rollouts of a job; raises ActorError where one will not come."""
        ...

    def close(self) -> None:
        """Ends the actors and closes their environments; a second call does nothing."""
        ...
