"""How fast PPO trains: beside its peers, and beside what the pool and the update alone allow.

Rows of one setting, each from one run, compilation apart (`docs/benchmarks.md` has the method):

    ppo/train            steps/s of whole training, beside each peer
    ppo/first_update     s from an open pool to the end of the first update, nothing compiled before
    pool/random          rows/s of the bare pool under given random actions
    pool/random_xla      the same through its XLA step, in one jitted scan
    collector/<kind>     rows/s with the policy in the loop, beside the pool stepped the same way
    ppo/update           rows/s of the jitted update alone, all its epochs, on a fixed batch
    ppo/train_rows       rows/s of whole training, beside the bound 1 / (1 / pool + 1 / update),
                         where the pool is stepped the faster way
    time/...             ms per update that training spends to collect, to learn and between

A step is a row that is valid: those that autoreset puts behind an ending do not count.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Iterator
from typing import Any

import jax

from agents import ppo
from launch.benchmarks import Options, measure, processes
from launch.benchmarks.peers import Peers
from launch.benchmarks.table import Row
from rljax import rollout
from rljax.config import UsageError, nearest
from rljax.envs import host_envpool

PEERS = Peers(
    {"sb3": "stable-baselines3", "sbx": "sbx-rl"},
    "peer_sb3.py",
    ("torch", "jax", "envpool", "gymnasium", "numpy"),
    target="bench",
)
versions = PEERS.versions


@dataclasses.dataclass(frozen=True)
class Setting:
    """A task and a config, and how many updates are timed."""

    env: str
    config: ppo.Config
    warm_up: int  # updates after the first and before the first timed window
    window: int  # updates that are timed at a time

    def load(self, repeats: int) -> measure.Load:
        """What every part of it is timed on."""
        return measure.Load(self.config.rollout_length, self.config.num_envs, self.window, repeats)

    def describe(self, num_threads: int) -> dict[str, Any]:
        """What figures depend on, as it stands above their table."""
        config = self.config
        rows = config.num_envs * config.rollout_length
        return {
            "env": self.env,
            "num_envs": config.num_envs,
            "rollout_length": config.rollout_length,
            "num_epochs": config.num_epochs,
            "minibatch_size": rows // config.num_minibatches,
            "normalize": config.normalize_observation,
            "num_threads": num_threads,
            "updates_per_window": self.window,
        }


# value_cost is 1 where the peers' vf_coef is 0.5: their squared error has no ½.
_CARTPOLE = ppo.Config(
    learning_rate=2.5e-4, anneal_learning_rate=False, entropy_cost=0.01, value_cost=1.0
)
_CHEETAH = ppo.Config(
    num_envs=8,
    rollout_length=256,
    num_epochs=10,
    num_minibatches=32,
    anneal_learning_rate=False,
    value_cost=1.0,
    normalize_observation=True,
    reward_scale=ppo.RewardScale.REWARD,
)
SETTINGS = (
    Setting("CartPole-v1", dataclasses.replace(_CARTPOLE, num_envs=8), 20, 100),
    Setting("CartPole-v1", dataclasses.replace(_CARTPOLE, num_envs=64), 5, 50),
    Setting("HalfCheetah-v4", _CHEETAH, 5, 20),
)


def rows(options: Options) -> Iterator[Row]:
    """All rows of all settings, then those of whole processes. Raises UsageError at once."""
    known = {setting.env for setting in SETTINGS}
    if options.env is not None and options.env not in known:
        raise UsageError(f"no settings for --env={options.env}; {nearest(options.env, known)}")
    chosen = [setting for setting in SETTINGS if options.env in (None, setting.env)]
    parts = [setting_rows(setting, options) for setting in chosen]
    if options.env in (None, "CartPole-v1"):
        parts.append(process_rows(options.repeats))
    return itertools.chain.from_iterable(parts)


def setting_rows(setting: Setting, options: Options) -> Iterator[Row]:
    """The rows of one setting."""
    jax.config.update("jax_enable_compilation_cache", False)  # so that a first update compiles
    config, load = setting.config, setting.load(options.repeats)
    updates = 1 + setting.warm_up + options.repeats * setting.window
    config = dataclasses.replace(config, total_steps=updates * load.rows)
    settings = setting.describe(options.num_threads)

    def row(name: str, samples: tuple[float, ...], unit: str, *peer: Any) -> Row:
        return Row(name, statistics.median(samples), unit, settings, *peer, samples=samples)

    env = host_envpool.make(setting.env, config.num_envs, 0, num_threads=options.num_threads)
    agent = ppo.make(config, env.spec)
    ours = measure.training(agent, env, ppo.loop(config), setting.warm_up, load)
    for peer in PEERS.chosen(options) or (None,):
        speed, first = run_peer(peer, setting, options) if peer else (None, None)
        yield row("ppo/train", ours.steps_per_second, "steps/s", peer, speed)
        yield row("ppo/first_update", (ours.first_update,), "s", peer, first)

    pool = row("pool/random", measure.pool(env.spec, options.num_threads, load), "rows/s")
    yield pool
    samples, trajectory = measure.collector(agent, env, rollout.Kind.HOST, load)
    yield row("collector/host", samples, "rows/s", pool.name, pool.value)
    through_xla = measure.pool_xla(env, load)
    if through_xla is not None:
        xla = row("pool/random_xla", through_xla, "rows/s", pool.name, pool.value)
        yield xla
        samples, trajectory = measure.collector(agent, env, rollout.Kind.ENVPOOL_XLA, load)
        yield row("collector/envpool_xla", samples, "rows/s", xla.name, xla.value)
        pool = max(pool, xla, key=lambda row: row.value)
    update = row("ppo/update", measure.update(agent, trajectory, load), "rows/s")
    yield update

    bound = 1 / (1 / pool.value + 1 / update.value)
    yield row("ppo/train_rows", ours.rows_per_second, "rows/s", "bound", bound)
    least = 1000 * load.rows / pool.value
    yield row("time/collect", ours.collect_ms, "ms", pool.name, least)
    least = 1000 * load.rows / update.value
    yield row("time/learn", ours.learn_ms, "ms", update.name, least)
    yield row("time/between", ours.between_ms, "ms")


def process_rows(repeats: int) -> Iterator[Row]:
    """What a user waits for and pays, measured from outside; peers are the targets."""
    flags = ["--agent=ppo", "--env=CartPole-v1", "--config.total_steps=2560", "--eval_episodes=0"]
    command = {"command": f"python -m launch.train {' '.join(flags)}"}
    processes.train(flags)  # fills the compilation cache
    seconds = tuple(processes.train(flags).first_update_seconds for _ in range(repeats))
    yield _process_row("startup/first_update", seconds, "s", command, target=15.0)
    flags = [
        *("--agent=ppo", "--env=CartPole-v1", "--preset=none"),
        *("--config.num_envs=256", "--config.total_steps=1000000"),
    ]
    command = {"command": f"python -m launch.train {' '.join(flags)}"}
    peak = (processes.train(flags).peak_memory_gb,)
    yield _process_row("memory/resident", peak, "GB", command, target=1.5)
    command = {"command": "python -m launch.train --help"}
    seconds = tuple(processes.help_seconds() for _ in range(repeats))
    yield _process_row("help/wall", seconds, "s", command)


def _process_row(
    name: str,
    samples: tuple[float, ...],
    unit: str,
    settings: dict[str, Any],
    target: float | None = None,
) -> Row:
    peer = None if target is None else "target"
    return Row(name, statistics.median(samples), unit, settings, peer, target, samples)


def run_peer(peer: str, setting: Setting, options: Options) -> tuple[float, float]:
    """Its steps/s and the seconds of its first update, from a process of its own."""
    config = setting.config
    size = config.num_envs * config.rollout_length
    job = {
        "peer": peer,
        "env": setting.env,
        "num_envs": config.num_envs,
        "num_threads": options.num_threads,
        "normalize": config.normalize_observation,
        "warm_up": setting.warm_up,
        "window": setting.window,
        "repeats": options.repeats,
        "ppo": {
            "n_steps": config.rollout_length,
            "batch_size": size // config.num_minibatches,
            "n_epochs": config.num_epochs,
            "learning_rate": config.learning_rate,
            "gamma": config.discount,
            "gae_lambda": config.gae_lambda,
            "clip_range": config.clip_ratio,
            "ent_coef": config.entropy_cost,
            "vf_coef": config.value_cost / 2,
            "max_grad_norm": config.max_grad_norm,
            "policy_kwargs": {"net_arch": list(config.hidden_sizes)},
        },
    }
    result = PEERS.run(options, job)
    return statistics.median(result["steps_per_second"]), result["first_update_seconds"]
