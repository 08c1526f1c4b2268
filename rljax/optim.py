"""Optimizers by name, without a learning rate, and the step that agents take with them.

The rate lives in the train state, where a population can vary it: a step subtracts it times what
the optimizer gives.
"""

import enum
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax import Array

from rljax.agent import AXIS
from rljax.types import Metrics, Scalar


class Optimizer(enum.Enum):
    """What gradients are divided by."""

    ADAM = "adam"  # Kingma & Ba 2015, arXiv:1412.6980: with momentum 0.9, and 0.999 for the size
    RMSPROP = "rmsprop"  # Tieleman & Hinton 2012: no momentum


def make(
    kind: Optimizer, *, epsilon: Scalar, rmsprop_decay: Scalar, max_grad_norm: Scalar
) -> optax.GradientTransformation:
    """Scales gradients down to an L2 norm, over all parameters, then divides by their usual size.

    `epsilon` is added to the root of the mean square, in both; `rmsprop_decay` is the share of that
    mean which a step keeps. What comes out is uphill, for a learning rate of 1.
    """
    if kind is Optimizer.ADAM:
        scale = optax.scale_by_adam(eps=epsilon)
    else:
        scale = optax.scale_by_rms(rmsprop_decay, epsilon, eps_in_sqrt=False)
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), scale)


def gradient_step(
    loss: Callable[[Any], tuple[Array, Metrics]],
    learner: tuple[Any, optax.OptState],
    optimizer: optax.GradientTransformation,
    rate: Any,
) -> tuple[tuple[Any, optax.OptState], Metrics, Any]:
    """One step down the mean over devices of `loss(params)`, within a map over the axis `AXIS`.

    Args:
        loss: from parameters to what this device adds to the mean, and metrics.
        learner: parameters, and the state of the optimizer.
        optimizer: gives a step uphill, for a learning rate of 1.
        rate: of learning: one for all, or a tree of one for each part of the parameters.

    Returns:
        The learner, the metrics' means over the devices, and the gradient.
    """
    params, opt_state = learner
    grads, metrics = jax.lax.pmean(jax.grad(loss, has_aux=True)(params), AXIS)
    steps, opt_state = optimizer.update(grads, opt_state)
    return (descended(params, steps, rate), opt_state), metrics, grads


def descended(params: Any, steps: Any, rate: Any) -> Any:
    """The parameters less `rate` times the steps; the rate as in `gradient_step`."""

    def part(rate: Any, params: Any, steps: Any) -> Any:
        return jax.tree.map(lambda p, u: p - rate * u, params, steps)

    return jax.tree.map(part, rate, params, steps)
