"""Probe environments: each so small that its values are known, and failing it names the culprit.

After A. Jones on debugging reinforcement learning (andyljones.com/posts/rl-debugging):

    constant         one step, reward 1                       does V learn at all?
    shown            one step, random sign, reward = sign     does V see the observation?
    delayed          two steps, reward 1 at the end           is the future discounted?
    endless          reward = sign for ever, cut off          is a time limit told from an end?
    two_armed        one step, reward by action               does the policy follow the advantage?
    matching         one step, reward by action × sign        policy and V at once?
    tracking         the same with a real action              policies over boxes?

An observation is one number, `[1]`, which an ending step leaves as it is: the row that autoreset
puts behind it looks like a real one, so that a learner which gives such rows weight, or discounts
an end by 1, is off by far. Environments come with autoreset.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from rljax.envs import wrappers
from rljax.envs.base import JaxEnv, TimeStep
from rljax.types import ActionSpec, Box, Discrete, EnvSpec, Observation

FALSE, TRUE = jnp.bool_(False), jnp.bool_(True)


def constant() -> JaxEnv:
    """V = 1."""
    return _one_step("constant", Discrete(1), _one, lambda shown, action: jnp.float32(1))


def shown() -> JaxEnv:
    """V(±1) = ±1."""
    return _one_step("shown", Discrete(1), _sign, lambda shown, action: shown)


def delayed() -> JaxEnv:
    """Shows 0, then 1: V(0) = γ, V(1) = 1."""

    def reset(key: Array) -> tuple[Array, Observation]:
        return jnp.float32(0), _observe(jnp.float32(0))

    def step(first: Array, action: Array, key: Array) -> tuple[Array, TimeStep]:
        last = first == 1
        return jnp.float32(1), TimeStep(
            _observe(jnp.float32(1)), last.astype(jnp.float32), last, FALSE
        )

    return wrappers.autoreset(JaxEnv(_spec("delayed", Discrete(1)), reset, step))


def endless(max_steps: int) -> JaxEnv:
    """V(±1) = ±1 / (1 - γ), whatever the time limit.

    A learner that takes the limit for an end learns a truncated sum; one that bootstraps from the
    next episode's first observation instead of the true final one adds V of a random sign.
    """

    def reset(key: Array) -> tuple[Array, Observation]:
        sign = _sign(key)
        return sign, _observe(sign)

    def step(sign: Array, action: Array, key: Array) -> tuple[Array, TimeStep]:
        return sign, TimeStep(_observe(sign), sign, FALSE, FALSE)

    env = JaxEnv(_spec("endless", Discrete(1)), reset, step)
    return wrappers.autoreset(wrappers.time_limit(env, max_steps))


def two_armed() -> JaxEnv:
    """Action 1 gives 1, action 0 gives -1; V = 1 once the policy is right."""
    return _one_step("two_armed", Discrete(2), _one, lambda shown, action: 2.0 * action - 1)


def matching() -> JaxEnv:
    """Action 1 for the sign +1 and 0 for -1 gives 1, the other -1."""
    return _one_step("matching", Discrete(2), _sign, lambda shown, action: shown * (2 * action - 1))


def tracking() -> JaxEnv:
    """Minus the squared distance to half the sign: the best action is ±0.5, within [-2, 1]."""
    return _one_step(
        "tracking",
        Box((-2.0,), (1.0,)),
        _sign,
        lambda shown, action: -((action[0] - shown / 2) ** 2),
    )


def _one_step(
    name: str,
    action_spec: ActionSpec,
    draw: Callable[[Array], Array],
    reward: Callable[[Array, Array], Array],
) -> JaxEnv:
    """Shows a number that `draw(key)` gives, pays `reward(number, action)`, and terminates."""

    def reset(key: Array) -> tuple[Array, Observation]:
        number = draw(key)
        return number, _observe(number)

    def step(number: Array, action: Array, key: Array) -> tuple[Array, TimeStep]:
        return number, TimeStep(_observe(number), reward(number, action), TRUE, FALSE)

    return wrappers.autoreset(JaxEnv(_spec(name, action_spec), reset, step))


def _spec(name: str, action_spec: ActionSpec) -> EnvSpec:
    return EnvSpec(f"probe:{name}", (1,), "float32", action_spec)


def _observe(number: Array) -> Observation:
    return Observation(number[None])


def _one(key: Array) -> Array:
    return jnp.float32(1)


def _sign(key: Array) -> Array:
    return jax.random.rademacher(key, dtype=jnp.float32)
