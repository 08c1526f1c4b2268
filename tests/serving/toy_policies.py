"""Two-layer policies made by hand, one for each kind of action, and bundles of them."""

import dataclasses

import jax
import jax.numpy as jnp

from rljax.agent import Agent
from rljax.types import Box, Discrete, EnvSpec, MultiDiscrete
from serving import bundle

DISCRETE = EnvSpec("Toy-v0", (4,), "float32", Discrete(3), has_mask=True)
MULTI_DISCRETE = EnvSpec("Toy-v0", (4,), "float32", MultiDiscrete((2, 3)), has_mask=True)
BOX = EnvSpec("Toy-v0", (4,), "float32", Box((-0.5, -float("inf")), (0.5, float("inf"))))
PIXELS = EnvSpec("Toy-v0", (3, 3, 1), "uint8", Discrete(3))


@dataclasses.dataclass(frozen=True)
class Config:
    hidden: int = 16


def policy(spec: EnvSpec, hidden: int = 16):
    """Parameters; the first layer takes the flattened observation."""
    keys = jax.random.split(jax.random.key(3), 3)
    size = spec.action.mask_shape[0] if hasattr(spec.action, "mask_shape") else len(spec.action.low)
    inputs = jnp.zeros(spec.observation_shape).size
    return {
        "torso": jax.random.normal(keys[0], (inputs, hidden)),
        "head": (jax.random.normal(keys[1], (hidden, size)), jnp.arange(float(size))),
        "value": jax.random.normal(keys[2], (hidden, 1)),
    }


def agent(spec: EnvSpec) -> Agent:
    """Acts; learns nothing."""

    def act(policy, carry, observation, key, greedy):
        x = observation.features.reshape(observation.features.shape[0], -1).astype(jnp.float32)
        hidden = jnp.tanh(x @ policy["torso"])
        weights, bias = policy["head"]
        out = hidden @ weights + bias[None]
        extras = {"value": (hidden @ policy["value"]).squeeze(-1)}
        if isinstance(spec.action, Box):
            noise = 0.0 if greedy else jax.random.normal(key, out.shape)
            log_prob = jnp.sum(-0.5 * (noise * jnp.ones_like(out)) ** 2, axis=-1)
            extras |= {"log_prob": log_prob, "mean": out, "scale": jnp.ones_like(out)}
            return carry, out + noise, extras
        if observation.mask is not None:
            out = jnp.where(observation.mask, out, -1e9)
        sizes = getattr(spec.action, "nvec", None) or (spec.action.num_actions,)
        choices, log_probs = [], []
        for size, part_key in zip(sizes, jax.random.split(key, len(sizes)), strict=True):
            logits, out = jax.nn.log_softmax(out[:, :size]), out[:, size:]
            choice = logits.argmax(-1) if greedy else jax.random.categorical(part_key, logits)
            choices.append(choice)
            log_probs.append(jnp.take_along_axis(logits, choice[:, None], axis=1)[:, 0])
        action = jnp.stack(choices, axis=-1)
        if isinstance(spec.action, Discrete):
            action = action[:, 0]
        return carry, action, extras | {"log_prob": sum(log_probs[1:], start=log_probs[0])}

    return Agent(spec, lambda key: None, lambda batch: (), act, lambda state, batch, key: None)


def bundled(spec: EnvSpec, made_by: Agent | None = None) -> bundle.Bundle:
    """The toy of `spec`, or `made_by`, as a bundle."""
    provenance = bundle.Provenance("runs/toy", 7, "c0ffee", "toy", spec.name, "abc")
    return bundle.make(made_by or agent(spec), policy(spec), Config(), provenance)
