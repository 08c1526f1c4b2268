"""Actor-critic networks that remember: torso, memory, and two heads on what the memory gives.

The memory's contract is in `rljax.nn.recurrent`; layers of it are stacked, each with a carry of its
own. Read `make`.
"""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Bool, Float

from rljax.nn import policies
from rljax.nn.attention import Attention
from rljax.nn.heads import ValueHead
from rljax.nn.recurrent import Gru, Lstm
from rljax.types import EnvSpec


class Memory(enum.Enum):
    """What a policy remembers with."""

    GRU = "gru"
    LSTM = "lstm"
    ATTENTION = "attention"  # over a window of past steps


class Stack(nn.Module):
    """Memories one upon another; the carry is the tuple of theirs."""

    layers: tuple[nn.Module, ...]

    def initial_carry(self, batch: int) -> tuple[Any, ...]:
        """Zeros, every leaf `[B, ...]`."""
        return tuple(layer.initial_carry(batch) for layer in self.layers)

    @nn.compact
    def __call__(
        self, carry: tuple[Any, ...], x: Float[Array, "T B F"], valid: Bool[Array, "T B"]
    ) -> tuple[tuple[Any, ...], Float[Array, "T B H"]]:
        """What the last layer makes of every row."""
        left = []
        for layer, before in zip(self.layers, carry, strict=True):
            after, x = layer(before, x, valid)
            left.append(after)
        return tuple(left), x


class Trunk(nn.Module):
    """A torso, and a memory of what it made of every row."""

    torso: nn.Module
    memory: Stack

    @nn.compact
    def __call__(
        self, carry: tuple[Any, ...], features: Any, valid: Bool[Array, "T B"]
    ) -> tuple[tuple[Any, ...], Float[Array, "T B H"]]:
        """Features `[T, B, ...]` to hidden vectors."""
        return self.memory(carry, self.torso(features), valid)


class RecurrentActorCritic(NamedTuple):
    """Pure functions; `features` are `Observation.features` `[T, B, ...]`, `valid` is `[T, B]`.

    The policy's outputs go to `policies.distribution`. Acting is T = 1.
    """

    init: Callable[[Array], Any]  # key -> params
    initial_carry: Callable[[int], dict[str, Any]]  # {"shared"} or {"actor", "critic"}: of a trunk
    # params, carry, features, valid -> carry, the policy's outputs [T, B, ...], values [T, B]
    apply: Callable[[Any, Any, Any, Array], tuple[dict[str, Any], Any, Array]]


def stack(kind: Memory, layers: int, size: int, window: int, heads: int) -> Stack:
    """`layers` of `size` units; `window` steps and `heads` are of attention alone.

    Raises:
        ValueError: attention with a window of less than 2, or heads that do not divide the size.
    """
    if kind is Memory.ATTENTION:
        if window < 2:
            raise ValueError(f"a window of attention needs 2 steps or more, not {window}.")
        if size % heads:
            raise ValueError(f"{heads} heads of attention cannot share {size} units.")
        return Stack(tuple(Attention(size, window, heads) for _ in range(layers)))
    layer = {Memory.GRU: Gru, Memory.LSTM: Lstm}[kind]
    return Stack(tuple(layer(size) for _ in range(layers)))


def make(
    spec: EnvSpec,
    torso: nn.Module,
    memory: Stack,
    *,
    shared: bool,
    head_gain: float,
    initial_log_scale: float,
) -> RecurrentActorCritic:
    """Actor and critic as two heads on one trunk (`shared`), or on a trunk each.

    `torso` is one of `rljax.nn.torsos`; `head_gain` is of the policy's last layer;
    `initial_log_scale`, of boxes only, is ln σ. Parameters are {"trunks", "actor", "critic"}.
    """
    trunk = Trunk(torso, memory)
    policy, value = policies.head(spec.action, head_gain, initial_log_scale), ValueHead()
    names = ("shared",) if shared else ("actor", "critic")

    def initial_carry(batch: int) -> dict[str, Any]:
        return {name: memory.initial_carry(batch) for name in names}

    def init(key: Array) -> Any:
        actor_key, critic_key, *keys = jax.random.split(key, 2 + len(names))
        rows = (memory.initial_carry(1), spec.example((1, 1)).features, jnp.ones((1, 1), bool))
        (_, hidden), _ = trunk.init_with_output(key, *rows)
        return {
            "trunks": {name: trunk.init(k, *rows) for name, k in zip(names, keys, strict=True)},
            "actor": policy.init(actor_key, hidden),
            "critic": value.init(critic_key, hidden),
        }

    def apply(
        params: Any, carry: dict[str, Any], features: Any, valid: Array
    ) -> tuple[dict[str, Any], Any, Array]:
        left, hidden = {}, {}
        for name in names:
            rows = (carry[name], features, valid)
            left[name], hidden[name] = trunk.apply(params["trunks"][name], *rows)
        outputs = policy.apply(params["actor"], hidden[names[0]])
        return left, outputs, jnp.asarray(value.apply(params["critic"], hidden[names[-1]]))

    return RecurrentActorCritic(init, initial_carry, apply)
