"""The two kinds of environment: pure functions in the graph, batches of simulators on the host.

Both restart on the step after an ending one (see `rljax.types`): that step ignores its action,
gives reward 0, neither terminated nor truncated, and returns the next episode's first observation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jax import Array

from rljax.types import EnvSpec, Observation


class TimeStep(NamedTuple):
    """What a step returns; arrays `[B]`, or scalars from a single in-graph environment."""

    observation: Observation
    reward: Any  # float32
    terminated: Any  # bool: the episode ended by the rules of the task; its future is worth nothing
    truncated: Any  # bool: it was cut off, by a time limit mostly; its future is worth V
    # What scores count, where the agent learns from something else (Atari's clipped rewards, and
    # lives as episodes): the true reward, and whether the whole game is over. None: as above.
    score: Any = None  # float32
    game_over: Any = None  # bool

    @property
    def ended(self) -> Any:
        """Whether the next step starts anew; bool."""
        return self.terminated | self.truncated

    @property
    def scored(self) -> tuple[Any, Any]:
        """What this step adds to the score, and whether the scored episode ended."""
        if self.score is None or self.game_over is None:
            return self.reward, self.ended
        return self.score, self.game_over


class JaxEnv(NamedTuple):
    """One environment as pure functions; collectors `vmap` them. Random only through `key`."""

    spec: EnvSpec
    reset: Callable[[Array], tuple[Any, Observation]]  # key -> state, observation
    step: Callable[[Any, Array, Array], tuple[Any, TimeStep]]  # state, action, key -> state, step


class XlaEnv(NamedTuple):
    """A host pool's step as an XLA call, on the CPU backend; not to be vmapped or sharded."""

    handle: Array  # an ordering token: thread it through every step
    step: Callable[[Array, Array], tuple[Array, TimeStep]]  # handle, action -> handle, step


@runtime_checkable
class HostEnv(Protocol):
    """A batch of simulators stepped from Python with NumPy arrays."""

    spec: EnvSpec
    num_envs: int

    def reset(self) -> Observation:
        """Starts every environment anew; features `[B, ...]`. Arrays are the caller's to keep."""
        ...

    def step(self, action: np.ndarray) -> TimeStep:
        """Steps all environments with actions `[B, ...]`. Arrays are the caller's to keep."""
        ...

    def xla(self) -> XlaEnv | None:
        """The pool's XLA step, or None where there is none. Call `reset` first."""
        ...

    def close(self) -> None:
        """Frees threads and memory; a second call does nothing."""
        ...
