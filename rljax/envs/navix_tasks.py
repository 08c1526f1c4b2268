"""Tasks of NAVIX (Pignatelli et al. 2024, arXiv:2407.19396), MiniGrid in JAX; extra `navix`.

    navix:Navix-Empty-5x5-v0, navix:Navix-DoorKey-8x8-v0, ...

Symbols are shown as a flat vector of their numbers; pixels as frames. Options are those of
`navix.make`, with `max_episode_steps` for its `max_steps`, and `observation`: the name of one of
its functions, such as "symbolic_first_person" or "rgb".
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from rljax.envs import adapting
from rljax.envs.base import JaxEnv, TimeStep
from rljax.types import Discrete, EnvSpec, Observation

_TRUNCATED, _TERMINATED = 1, 2  # NAVIX's `step_type`; 0 is neither
_SMALLEST_PICTURE = 32  # pixels a side: a board of symbols has fewer cells


def make(name: str, options: Mapping[str, Any]) -> JaxEnv:
    """One environment, without autoreset.

    Raises:
        ImportError: NAVIX is not installed.
        ValueError: there is no such task or observation, or it refuses an option.
    """
    navix = adapting.library("navix", "navix")
    adapting.check_name("NAVIX", name, navix.registry())
    chosen = dict(options)
    if "max_episode_steps" in chosen:
        chosen["max_steps"] = chosen.pop("max_episode_steps")
    if "observation" in chosen:
        shown = chosen.pop("observation")
        if not callable(getattr(navix.observations, str(shown), None)):
            raise ValueError(f"navix:{name} has no observation {shown!r}; rgb is one.")
        chosen["observation_fn"] = getattr(navix.observations, shown)
    try:
        env = navix.make(name, **chosen)
    except (TypeError, ValueError) as error:
        raise ValueError(f"NAVIX refuses navix:{name} with {dict(options)}: {error}") from error
    first = jax.eval_shape(env.reset, jax.random.key(0)).observation
    picture = len(first.shape) == 3 and min(first.shape[:2]) >= _SMALLEST_PICTURE
    spec = EnvSpec(
        f"navix:{name}",
        first.shape if picture else adapting.vector_shape(first.shape),
        "uint8" if picture else "float32",
        Discrete(len(env.action_set)),
        max_episode_steps=int(env.max_steps),
    )

    def observation(features: Array) -> Observation:
        if picture:
            return Observation(features.astype(jnp.uint8))
        return adapting.vector(features)

    def reset(key: Array) -> tuple[Any, Observation]:
        running = env.reset(key)
        return running, observation(running.observation)

    def step(state: Any, action: Array, key: Array) -> tuple[Any, TimeStep]:
        del key  # the state has its own
        after = adapting.alike(env._step(state, action), state)
        timestep = TimeStep(
            observation(after.observation),
            jnp.float32(after.reward),
            after.step_type == _TERMINATED,
            after.step_type == _TRUNCATED,
        )
        return after, timestep

    return JaxEnv(spec, reset, step)
