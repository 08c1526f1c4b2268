"""Passes over the rows of one rollout, ended early where the policy has moved enough."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from rljax.types import Metrics


def run(
    epoch: Callable[[Any, Array], tuple[Any, Metrics]],
    learner: Any,
    keys: Array,
    target_kl: float | None,
) -> tuple[Any, Metrics]:
    """One epoch a key, or, with `target_kl`, until one ends with an approximate KL over 1.5 × it.

    Args:
        epoch: from the learner and a key to the learner and metrics, "policy/approx_kl" among them.
        learner: any pytree: parameters and the optimizer's state.
        keys: `[epochs]`.
        target_kl: in nats; None: all epochs run.

    Returns:
        The learner, and the metrics' means over the epochs that ran; how many those were is
        "policy/epochs", with a `target_kl`.
    """
    if target_kl is None:
        learner, metrics = jax.lax.scan(epoch, learner, keys)
        return learner, jax.tree.map(jnp.mean, metrics)

    def guarded(carry: tuple[Any, Array], key: Array) -> tuple[tuple[Any, Array], Any]:
        learner, go = carry
        unchanged = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(epoch, learner, key)[1]
        )
        learner, metrics = jax.lax.cond(
            go, epoch, lambda learner, key: (learner, unchanged), learner, key
        )
        near = metrics["policy/approx_kl"] <= 1.5 * target_kl
        return (learner, go & near), (metrics, go)

    start = learner, jnp.bool_(True)
    (learner, _), (metrics, ran) = jax.lax.scan(guarded, start, keys)
    count = jnp.sum(ran)
    means = jax.tree.map(lambda x: jnp.sum(x) / count, metrics)
    return learner, {**means, "policy/epochs": count.astype(jnp.float32)}
