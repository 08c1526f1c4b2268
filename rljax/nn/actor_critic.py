"""The networks of actor-critic agents: from what the environment shows to a policy and a value.

Apart, actor and critic are two networks that share no layer, which suits vectors; with a shared
torso they are two heads on one trunk, which suits pixels (the trunk is most of the work, and the
value's gradient teaches it to see). The parameters of the two forms:

    apart     {"actor": torso and head, "critic": torso and head}
    shared    {"torso": ..., "actor": head, "critic": head}
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from rljax.nn import policies, torsos
from rljax.nn.heads import ValueHead
from rljax.nn.mlp import Activation
from rljax.nn.torsos import Torso
from rljax.types import EnvSpec


class ActorCritic(NamedTuple):
    """Pure functions; `features` are `Observation.features`, arrays or dicts of arrays `[..., *]`.

    The policy's outputs go to `policies.distribution`.
    """

    init: Callable[[Array], Any]  # key -> params
    apply: Callable[[Any, Any], tuple[Any, Array]]  # params, features -> outputs, value [...]
    actor: Callable[[Any, Any], Any]  # params, features -> the policy's outputs alone
    critic: Callable[[Any, Any], Array]  # params, features -> the value alone, [...]


def make(
    spec: EnvSpec,
    torso: Torso,
    hidden_sizes: tuple[int, ...],
    activation: Activation,
    *,
    shared: bool | None = None,
    head_gain: float = 0.01,
    initial_log_scale: float = 0.0,
) -> ActorCritic:
    """The networks for a spec; `hidden_sizes` and `activation` are of the MLP that sees vectors.

    `shared` None is a shared torso where there are frames, and networks apart elsewhere.
    `head_gain` is of the policy's last layer; `initial_log_scale`, of boxes only, is ln σ.

    Raises:
        ValueError: the torso cannot look at what the environment shows.
    """
    trunk = torsos.make(torso, spec, hidden_sizes, activation)
    if torsos.has_pixels(spec) if shared is None else shared:
        return _shared(spec, trunk, policies.head(spec.action, head_gain, initial_log_scale))
    return _apart(spec, trunk, policies.Actor(trunk, spec.action, head_gain, initial_log_scale))


def _apart(spec: EnvSpec, torso: nn.Module, policy: nn.Module) -> ActorCritic:
    value = nn.Sequential([torso.copy(), ValueHead()])

    def init(key: Array) -> Any:
        actor_key, critic_key = jax.random.split(key)
        x = spec.example().features
        return {"actor": policy.init(actor_key, x), "critic": value.init(critic_key, x)}

    def actor(params: Any, features: Any) -> Any:
        return policy.apply(params["actor"], features)

    def critic(params: Any, features: Any) -> Array:
        return jnp.asarray(value.apply(params["critic"], features))

    def apply(params: Any, features: Any) -> tuple[Any, Array]:
        return actor(params, features), critic(params, features)

    return ActorCritic(init, apply, actor, critic)


def _shared(spec: EnvSpec, torso: nn.Module, policy: nn.Module) -> ActorCritic:
    value = ValueHead()

    def init(key: Array) -> Any:
        torso_key, actor_key, critic_key = jax.random.split(key, 3)
        hidden, params = torso.init_with_output(torso_key, spec.example().features)
        return {
            "torso": params,
            "actor": policy.init(actor_key, hidden),
            "critic": value.init(critic_key, hidden),
        }

    def actor(params: Any, features: Any) -> Any:
        return policy.apply(params["actor"], torso.apply(params["torso"], features))

    def critic(params: Any, features: Any) -> Array:
        hidden = torso.apply(params["torso"], features)
        return jnp.asarray(value.apply(params["critic"], hidden))

    def apply(params: Any, features: Any) -> tuple[Any, Array]:
        hidden = torso.apply(params["torso"], features)
        outputs = policy.apply(params["actor"], hidden)
        return outputs, jnp.asarray(value.apply(params["critic"], hidden))

    return ActorCritic(init, apply, actor, critic)
