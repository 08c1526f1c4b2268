"""Tasks of MuJoCo Playground (Zakka et al. 2025, arXiv:2502.08844); extra `playground`.

    playground:CartpoleBalance, playground:CheetahRun, playground:Go1JoystickFlatTerrain, ...

Options are entries of the task's configuration, such as `ctrl_dt`, and `max_episode_steps`. MJX
runs in JAX here (`impl`: "jax"), where the library's default is Warp, which wants an NVIDIA GPU.
"""

from collections.abc import Mapping
from typing import Any

from rljax.envs import adapting, brax_tasks, wrappers
from rljax.envs.base import JaxEnv


def make(name: str, options: Mapping[str, Any]) -> JaxEnv:
    """One environment, without autoreset; actions lie within -1 and 1.

    Raises:
        ImportError: MuJoCo Playground is not installed.
        ValueError: there is no such task or option, or it shows pixels.
    """
    registry = adapting.library("mujoco_playground", "playground").registry
    adapting.check_name("MuJoCo Playground", name, registry.ALL_ENVS)
    config = registry.get_default_config(name)
    chosen: dict[str, Any] = {"impl": "jax"} if "impl" in config else {}
    chosen |= options
    repeat = chosen.get("action_repeat", config.get("action_repeat", 1))
    max_steps = chosen.pop("max_episode_steps", config.episode_length // repeat)
    for option in chosen:
        if option not in config:
            known = ", ".join(config)
            raise ValueError(f"playground:{name} has no option {option!r}; its options: {known}.")
    env = registry.load(name, config_overrides=chosen)
    adapted = brax_tasks.adapt(env, f"playground:{name}", repeat)
    return wrappers.time_limit(adapted, max_steps)
