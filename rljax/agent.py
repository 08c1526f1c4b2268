"""The contract between algorithms and everything else: an agent is a NamedTuple of pure functions.

    init(key) -> TrainState                                   a pytree with all that a resume needs
    initial_carry(batch) -> carry                             () when feed-forward
    act(policy, carry, observation, key, greedy) -> carry, action, extras
    update(state, batch, key) -> state, metrics               per device

`policy` is `state.policy`: what acting needs, no more (parameters and frozen statistics). Rollouts,
evaluation, export and serving receive it.

`update` is written for one device of many: it sees its shard of the batch and meets the others in
`lax.pmean` over the axis `AXIS`. It always runs through `rljax.sharding.data_parallel`, so the axis
exists even on a single device. `greedy` is a Python bool: it selects a program, not a branch in it.

On-policy agents learn from a `rljax.types.Trajectory`, off-policy and offline ones from a
`rljax.replay.base.Sample`. `metrics` are scalars; an agent that learns from prioritized replay also
returns `PRIORITY`, `[B]` of the whole batch (gathered over `AXIS`), which the loop hands to the
buffer and does not log.

`extras` of `act` holds everything that can be said of a decision ("log_prob", "value", "entropy",
"probabilities" or "mean" and "scale"); rollouts keep those named in `stores`, and because
collectors are jitted the others cost nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jax import Array

from rljax.types import EnvSpec, Metrics, Observation

AXIS = "data"  # the name of the device axis that updates reduce over
PRIORITY = "replay/priority"  # metric that goes back to the buffer: |TD error| of every row


@runtime_checkable
class TrainState(Protocol):
    """Any pytree with the property `policy`; agents define theirs as a NamedTuple."""

    @property
    def policy(self) -> Any:
        """What `act` needs."""
        ...


class Agent(NamedTuple):
    """Pure functions, bound to a config and a spec by `agents.x.make(config, spec)`."""

    spec: EnvSpec
    init: Callable[[Array], Any]
    initial_carry: Callable[[int], Any]
    act: Callable[[Any, Any, Observation, Array, bool], tuple[Any, Array, dict[str, Array]]]
    update: Callable[[Any, Any, Array], tuple[Any, Metrics]]
    stores: tuple[str, ...] = ()  # the extras that `update` wants to find in its batch
