"""Distributions over actions: NamedTuples of arrays, so that they pass through jit, vmap and scan.

Each has `sample(key)`, `mode()`, `log_prob(action)`, `entropy()`, which reduce over the action's
own axes, and `parameters()`: what a served decision reports of the distribution.
"""

import math
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray

_MASKED = -1e30  # finite, so that 0 · log 0 is 0 in entropies and in one-hot sums


@runtime_checkable
class Distribution(Protocol):
    """What agents may ask of a distribution over actions."""

    def sample(self, key: PRNGKeyArray) -> Array:
        """One action for each batch element."""
        ...

    def mode(self) -> Array:
        """The greedy action."""
        ...

    def log_prob(self, action: Array) -> Array:
        """Log-probability or log-density of each action, `[...]`."""
        ...

    def entropy(self) -> Array:
        """Entropy in nats, `[...]`."""
        ...

    def parameters(self) -> dict[str, Array]:
        """Named parameters, for logs and serving."""
        ...


class Categorical(NamedTuple):
    """A choice among A actions, from normalized log-probabilities `[..., A]`."""

    log_probs: Float[Array, "*batch A"]

    def sample(self, key: PRNGKeyArray) -> Int[Array, "*batch"]:
        """Draws by the Gumbel-max trick."""
        return jax.random.categorical(key, self.log_probs).astype(jnp.int32)

    def mode(self) -> Int[Array, "*batch"]:
        """The most probable action."""
        return jnp.argmax(self.log_probs, axis=-1).astype(jnp.int32)

    def log_prob(self, action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Log-probability of `action`."""
        # A one-hot sum, not a gather: its gradient is a product instead of a scatter, slow on CPU.
        chosen = jax.nn.one_hot(action, self.log_probs.shape[-1], dtype=self.log_probs.dtype)
        return jnp.sum(chosen * self.log_probs, axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Entropy in nats; masked actions add nothing."""
        return -jnp.sum(jnp.exp(self.log_probs) * self.log_probs, axis=-1)

    def parameters(self) -> dict[str, Array]:
        """`probabilities` `[..., A]`, exactly 0 where masked."""
        return {"probabilities": jnp.exp(self.log_probs)}


def categorical(
    logits: Float[Array, "*batch A"], mask: Bool[Array, "*batch A"] | None = None
) -> Categorical:
    """A Categorical from unnormalized `logits`; no probability or gradient where `mask` is False.

    A mask that forbids every action has no meaning; the result is then uniform, never NaN.
    """
    if mask is not None:
        logits = jnp.where(mask, logits, _MASKED)
    return Categorical(jax.nn.log_softmax(logits, axis=-1))


class Joint(NamedTuple):
    """Independent categorical components, for multi-discrete actions `[..., K]`."""

    components: tuple[Categorical, ...]

    def sample(self, key: PRNGKeyArray) -> Int[Array, "*batch K"]:
        """Draws every component with a key of its own."""
        keys = jax.random.split(key, len(self.components))
        draws = [c.sample(k) for c, k in zip(self.components, keys, strict=True)]
        return jnp.stack(draws, axis=-1)

    def mode(self) -> Int[Array, "*batch K"]:
        """The most probable choice of each component."""
        return jnp.stack([c.mode() for c in self.components], axis=-1)

    def log_prob(self, action: Int[Array, "*batch K"]) -> Float[Array, "*batch"]:
        """Sum of the components' log-probabilities."""
        parts = [c.log_prob(action[..., i]) for i, c in enumerate(self.components)]
        return sum(parts[1:], start=parts[0])

    def entropy(self) -> Float[Array, "*batch"]:
        """Sum of the components' entropies."""
        parts = [c.entropy() for c in self.components]
        return sum(parts[1:], start=parts[0])

    def parameters(self) -> dict[str, Array]:
        """`probabilities` `[..., sum(nvec)]`: the components', one after another."""
        parts = [c.parameters()["probabilities"] for c in self.components]
        return {"probabilities": jnp.concatenate(parts, axis=-1)}


class Normal(NamedTuple):
    """A Gaussian with independent dimensions: mean and log deviation `[..., A]`."""

    mean: Float[Array, "*batch A"]
    log_scale: Float[Array, "*batch A"]

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*batch A"]:
        """Mean plus scaled standard normal noise."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(self.log_scale) * noise

    def mode(self) -> Float[Array, "*batch A"]:
        """The mean."""
        return self.mean

    def log_prob(self, action: Float[Array, "*batch A"]) -> Float[Array, "*batch"]:
        """Log-density, summed over the dimensions."""
        z = (action - self.mean) * jnp.exp(-self.log_scale)
        return jnp.sum(-0.5 * z**2 - self.log_scale - 0.5 * math.log(2 * math.pi), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """½ log(2πe σ²), summed over the dimensions."""
        return jnp.sum(self.log_scale + 0.5 * math.log(2 * math.pi * math.e), axis=-1)

    def parameters(self) -> dict[str, Array]:
        """`mean` and `scale`, `[..., A]`."""
        return {"mean": self.mean, "scale": jnp.exp(self.log_scale)}


_EDGE = 1 - 1e-6  # float32 tanh reaches 1 at 9: keep its inverse finite
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(32)
_WEIGHTS /= _WEIGHTS.sum()  # of a standard normal's expectation


class TanhNormal(NamedTuple):
    """A Gaussian squashed by tanh and stretched to `low`..`high` (Haarnoja et al. 2018, app. C)."""

    base: Normal
    low: Float[Array, "*batch A"]
    high: Float[Array, "*batch A"]

    def _squash(self, u: Array) -> Array:
        return self._stretch(jnp.clip(jnp.tanh(u), -_EDGE, _EDGE))

    def _stretch(self, squashed: Array) -> Array:
        return self.low + 0.5 * (self.high - self.low) * (squashed + 1)

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*batch A"]:
        """A squashed draw, within the bounds."""
        return self._squash(self.base.sample(key))

    def from_noise(
        self, noise: Float[Array, "*batch A"]
    ) -> tuple[Float[Array, "*batch A"], Float[Array, "*batch"]]:
        """The draw that standard normal noise gives, and its log-density.

        The same numbers as `log_prob` of it, without the way back through arctanh: exact, and with
        a gradient, where that has come near the edge.
        """
        u = self.base.mean + jnp.exp(self.base.log_scale) * noise
        log_prob = self.base.log_prob(u) - jnp.sum(self._log_slope(u), axis=-1)
        return self._squash(u), log_prob

    def mode(self) -> Float[Array, "*batch A"]:
        """The squashed mean, as is usual, though the density's own peak may lie elsewhere."""
        return self._stretch(jnp.tanh(self.base.mean))

    def log_prob(self, action: Float[Array, "*batch A"]) -> Float[Array, "*batch"]:
        """Log-density of `action`, always through the inverse: the same action, the same number."""
        squashed = 2 * (action - self.low) / (self.high - self.low) - 1
        squashed = jnp.clip(squashed, -_EDGE, _EDGE)
        # arctanh, spelled out: JAX lowers its own to an operation that TensorFlow cannot read.
        u = 0.5 * (jnp.log1p(squashed) - jnp.log1p(-squashed))
        return self.base.log_prob(u) - jnp.sum(self._log_slope(u), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """The base's entropy plus E[log slope], the latter by 32-point Gauss-Hermite quadrature."""
        scale = jnp.exp(self.base.log_scale)
        slope = sum(
            weight * self._log_slope(self.base.mean + scale * node)
            for node, weight in zip(_NODES, _WEIGHTS, strict=True)
        )
        return self.base.entropy() + jnp.sum(slope, axis=-1)

    def _log_slope(self, u: Array) -> Array:
        return _log_tanh_slope(u) + jnp.log(0.5 * (self.high - self.low))

    def parameters(self) -> dict[str, Array]:
        """`mean` and `scale` of the Gaussian before squashing, `[..., A]`."""
        return self.base.parameters()


def _log_tanh_slope(u: Array) -> Array:
    """log(1 - tanh²u) = 2 (log 2 - u - softplus(-2u)), without the cancellation."""
    return 2 * (math.log(2) - u - jax.nn.softplus(-2 * u))
