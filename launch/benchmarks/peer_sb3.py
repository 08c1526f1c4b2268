# pyright: reportMissingImports=false
"""Steps per second of Stable-Baselines3 or SBX on an EnvPool task: one JSON line on stdout.

Run by `launch.benchmarks.ppo` and `.off_policy`, with an interpreter that has them and none of
ours. The job names the algorithm by the key of its options; with "episodes" it plays some at the
end, greedily.

    .venv-bench/bin/python launch/benchmarks/peer_sb3.py '{"peer": "sbx", ...}'
"""

import importlib
import json
import sys
import time

import envpool
import gymnasium
import numpy as np
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, VecNormalize

MODULES = {"sb3": "stable_baselines3", "sbx": "sbx"}
ALGORITHMS = ("ppo", "sac", "dqn")


class EnvPoolVecEnv(VecEnv):
    """A pool as Stable-Baselines3 wants it: an ended environment is reset within the same step.

    EnvPool resets on the step after. So each step ends with one batched `reset` of those that
    ended; the true final observation goes into `infos`, with `TimeLimit.truncated` where the time
    limit cut the episode off, so that the peer can bootstrap from it.
    """

    def __init__(self, pool):
        """Describes a pool of `envpool.make(..., env_type="gymnasium")`."""
        self.pool = pool
        space = pool.observation_space
        box = gymnasium.spaces.Box(
            space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32
        )
        super().__init__(pool.config["num_envs"], box, pool.action_space)

    def reset(self):
        """Starts every environment anew."""
        return self.pool.reset()[0].astype(np.float32, copy=False)

    def step_async(self, actions):
        """Keeps the actions for `step_wait`."""
        self.actions = actions

    def step_wait(self):
        """Steps, and resets what ended: its final observation goes into `infos`."""
        observation, reward, terminated, truncated, _ = self.pool.step(self.actions)
        observation = observation.astype(np.float32, copy=False)
        done = terminated | truncated
        infos = [{} for _ in range(self.num_envs)]
        ids = np.flatnonzero(done)
        if ids.size:
            for i in ids:
                infos[i]["terminal_observation"] = observation[i].copy()  # a view would be lost
                infos[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
            observation[ids] = self.pool.reset(ids)[0]
        return observation, reward, done, infos

    def close(self):
        """Nothing to do: the pool goes with this object."""

    def get_attr(self, attr_name, indices=None):
        """What the simulators have in common; they have no attributes of their own."""
        return [getattr(self, attr_name, None)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name, value, indices=None):
        """Refused: the simulators are in C++."""
        raise AttributeError(f"a pool's environments have no {attr_name} to set")

    def env_method(self, method_name, *method_args, indices=None, **method_kwargs):
        """Refused: the simulators are in C++."""
        raise AttributeError(f"a pool's environments have no method {method_name}")

    def env_is_wrapped(self, wrapper_class, indices=None):
        """Never: wrappers lie around the whole pool."""
        return [False] * len(list(self._get_indices(indices)))


def main():
    """Trains `warm_up` updates, then `repeats` windows of `window` updates each.

    An off-policy job says how many rows count as one update.
    """
    job = json.loads(sys.argv[1])
    algorithm = next(name for name in ALGORITHMS if name in job)
    options, seed = job[algorithm], job.get("seed", 0)
    torch.set_num_threads(1)  # its best: with networks this small, two threads are slower
    env = open_env(job, job["num_envs"], seed)
    if job["normalize"]:
        env = VecNormalize(env, clip_obs=10.0, gamma=options["gamma"])
    rows = job["rows"] if "rows" in job else job["num_envs"] * options["n_steps"]
    start = time.perf_counter()
    model = getattr(importlib.import_module(MODULES[job["peer"]]), algorithm.upper())(
        "MlpPolicy", env, seed=seed, device="cpu", **options
    )
    model.learn(rows)
    first_update_seconds = time.perf_counter() - start
    if job["warm_up"]:
        model.learn(job["warm_up"] * rows, reset_num_timesteps=False)
    steps_per_second = []
    for _ in range(job["repeats"]):
        before, start = model.num_timesteps, time.perf_counter()
        model.learn(round(job["window"] * rows), reset_num_timesteps=False)
        seconds = time.perf_counter() - start
        steps_per_second.append((model.num_timesteps - before) / seconds)
    result = {"first_update_seconds": first_update_seconds, "steps_per_second": steps_per_second}
    if job.get("episodes"):
        other = open_env(job, job["episodes"], 1000 + seed)
        result["score"] = float(evaluate_policy(model, other, job["episodes"])[0])
    print(json.dumps(result))


def open_env(job, num_envs, seed):
    """A pool of the task, as Stable-Baselines3 wants it."""
    threads = job["num_threads"]
    pool = envpool.make(
        job["env"], env_type="gymnasium", num_envs=num_envs, num_threads=threads, seed=seed
    )
    return VecMonitor(EnvPoolVecEnv(pool))


if __name__ == "__main__":
    main()
