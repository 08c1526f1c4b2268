"""How fast SAC and DQN train, beside SBX at an equal number of updates for each row.

Same task through EnvPool, same networks, batches, learning rates and replay; both in the
configuration in which their users run them. Rows of one setting, compilation apart:

    sac/train            updates/s of whole training once learning has begun, beside SBX
    sac/train_host       the same with the pool stepped from Python, one iteration a call
    sac/update           updates/s of draws and updates alone, in one scan over a filled replay,
                         beside the bound: if its matrix products, at the fastest that products of
                         this size ran here, were all that there is to do
    collector/<kind>     rows/s with the policy in the loop, nothing learned
    sac/first_rows       s from an open pool to the end of the first rows, with all that compiles
    score/greedy         mean return of 20 greedy episodes after equally many rows, median of seeds

Repeats are windows of one run for speeds, and seeds for scores. Where time goes, per row: 1 over
`collector` is collected, updates-per-row over `update` is learned, and the rest lies between.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from agents import dqn, sac
from launch.benchmarks import Options, measure
from launch.benchmarks.peers import Peers
from launch.benchmarks.table import Row
from launch.presets.dqn import PRESETS as DQN_PRESETS
from launch.presets.sac import PRESETS as SAC_PRESETS
from rljax import evaluation, registry, rollout, sharding
from rljax.agent import Agent
from rljax.config import UsageError, nearest
from rljax.envs import host_envpool
from rljax.envs.base import HostEnv
from rljax.loops import iterations, off_policy
from rljax.replay.base import Sample, row_of
from rljax.sharding import Parallel

TAKES = ("repeats", "env", "num_threads", "peers", "peer_python")
PEERS = Peers(
    {"sbx": "sbx-rl"},
    "peer_sb3.py",
    ("stable-baselines3", "torch", "jax", "envpool", "gymnasium", "numpy"),
    target="bench",
)
versions = PEERS.versions
_EPISODES = 20


@dataclasses.dataclass(frozen=True)
class Setting:
    """A task and a config; how many rows go before the timed windows, and how many are timed."""

    agent: str  # "sac" or "dqn"
    env: str
    config: Any  # of that agent
    warm_up: int  # rows, of which more than `learning_starts` are learned from
    window: int  # rows of one timed window
    scored: bool = True  # whether a run of `config.total_steps` is long enough to be judged

    @property
    def updates_per_row(self) -> float:
        """Updates for each row of experience."""
        config = self.config
        return config.num_updates / (config.num_envs * config.rollout_length)

    def describe(self, num_threads: int) -> dict[str, Any]:
        """What figures depend on, as it stands above their table."""
        config = self.config
        return {
            "env": self.env,
            "num_envs": config.num_envs,
            "rollout_length": config.rollout_length,
            "num_updates": config.num_updates,
            "batch_size": config.batch_size,
            "hidden_sizes": list(config.hidden_sizes),
            "total_steps": config.total_steps,
            "num_threads": num_threads,
        }


_CHEETAH = dataclasses.replace(
    SAC_PRESETS["HalfCheetah-v4"].config, total_steps=20_000, learning_starts=1_000
)
SETTINGS = (
    Setting("sac", "Pendulum-v1", SAC_PRESETS["Pendulum-v1"].config, 2_000, 4_000),
    Setting("sac", "HalfCheetah-v4", _CHEETAH, 2_000, 2_000, scored=False),
    # Not double and of squared errors, as SBX's is.
    Setting("dqn", "CartPole-v1", DQN_PRESETS["CartPole-v1"].config, 2_048, 10_240),
)


class Training(NamedTuple):
    """A run as it is timed; both ours and a peer's."""

    first_seconds: float  # of the first `warm_up` rows, with all that they compile
    rows_per_second: tuple[float, ...]


def rows(options: Options) -> Iterator[Row]:
    """All rows of all settings. Raises UsageError at once."""
    known = {setting.env for setting in SETTINGS}
    if options.env is not None and options.env not in known:
        raise UsageError(f"no settings for --env={options.env}; {nearest(options.env, known)}")
    chosen = [setting for setting in SETTINGS if options.env in (None, setting.env)]
    return itertools.chain.from_iterable(setting_rows(setting, options) for setting in chosen)


def setting_rows(setting: Setting, options: Options) -> Iterator[Row]:
    """The rows of one setting."""
    jax.config.update("jax_enable_compilation_cache", False)  # so that first rows compile
    settings, name = setting.describe(options.num_threads), setting.agent

    def row(name: str, samples: tuple[float, ...], unit: str, *peer: Any) -> Row:
        return Row(name, statistics.median(samples), unit, settings, *peer, samples=samples)

    def updates(rows_per_second: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(setting.updates_per_row * rate for rate in rows_per_second)

    ours = training(setting, options, rollout.Kind.AUTO)
    for peer in PEERS.chosen(options) or (None,):
        theirs = peer_training(peer, setting, options) if peer else None
        speed = statistics.median(updates(theirs.rows_per_second)) if theirs else None
        first = theirs.first_seconds if theirs else None
        yield row(f"{name}/train", updates(ours.rows_per_second), "updates/s", peer, speed)
        yield row(f"{name}/first_rows", (ours.first_seconds,), "s", peer, first)
    by_host = training(setting, options, rollout.Kind.HOST)
    yield row(f"{name}/train_host", updates(by_host.rows_per_second), "updates/s")
    most = bound(setting, options)
    yield row(f"{name}/update", update(setting, options), "updates/s", "bound", most)
    load = measure.Load(
        setting.config.rollout_length, setting.config.num_envs, 100, options.repeats
    )
    agent, env = _parts(setting, options)
    for kind in (rollout.Kind.HOST, rollout.Kind.ENVPOOL_XLA):
        samples, _ = measure.collector(agent, env, kind, load)
        yield row(f"collector/{kind.value}", samples, "rows/s")
    if setting.scored:
        scores = tuple(score(setting, options, seed) for seed in range(options.repeats))
        for peer in PEERS.chosen(options) or (None,):
            seeds = range(options.repeats) if peer else ()
            reached = [peer_score(peer, setting, options, seed) for seed in seeds if peer]
            theirs = statistics.median(reached) if reached else None
            yield row("score/greedy", scores, "return", peer, theirs)


def training(setting: Setting, options: Options, kind: rollout.Kind) -> Training:
    """The loop of `launch.train` without its writers."""
    start = time.perf_counter()
    agent, env = _parts(setting, options)
    last = setting.warm_up + options.repeats * setting.window
    loop = _loop(setting, seed=0, total_steps=last, collector=kind)
    run = off_policy.run(agent, env, off_policy.init(agent, env, loop), loop, 0)
    marks = []  # rows and seconds at the end of the first rows and of every window
    for step, state, _ in run:
        if step >= setting.warm_up + len(marks) * setting.window:
            jax.block_until_ready(state.train)
            marks.append((step, time.perf_counter() - start))
    rates = [(b - a) / (then - now) for (a, now), (b, then) in itertools.pairwise(marks)]
    return Training(marks[0][1], tuple(rates))


def update(setting: Setting, options: Options) -> tuple[float, ...]:
    """Updates/s where nothing is collected: draws from a replay of random rows, and updates."""
    agent, env = _parts(setting, options)
    loop = _loop(setting, seed=0, total_steps=setting.config.total_steps)
    buffer = off_policy.make_buffer(loop)
    state = off_policy.start(agent, env, loop, 0)
    length = loop.replay.capacity // loop.num_envs
    collector = rollout.make(agent, env, loop.num_envs, min(length, 500), rollout.Kind.HOST)
    key = jax.random.key(0)
    _, trajectory, _ = collector.collect(state.train.policy, collector.init(key), key)
    replay = jax.jit(buffer.add)(state.replay, trajectory.transitions)
    count = max(loop.num_updates, 100)
    few = jax.tree.map(lambda x: x[: loop.rollout_length], trajectory.transitions)
    learn = jax.jit(
        jax.shard_map(
            iterations.learner(agent, buffer, count),
            mesh=sharding.mesh(1),
            in_specs=jax.sharding.PartitionSpec(),
            out_specs=jax.sharding.PartitionSpec(),
            check_vma=False,
        ),
        donate_argnums=0,
    )
    both = (state.train, replay)
    both, _ = jax.block_until_ready(learn(both, few, key))  # compiles
    rates = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        for _ in range(5):
            both, found = learn(both, few, key)
            jax.block_until_ready(found)
        rates.append(5 * count / (time.perf_counter() - start))
    return tuple(rates)


def bound(setting: Setting, options: Options) -> float:
    """Updates/s that the matrix products of one update allow."""
    agent, _ = _parts(setting, options)
    config = setting.config
    row = row_of(agent, config.batch_size)
    sample = Sample(
        row.observation,
        row.action,
        row.reward,
        row.discount,
        row.observation,
        row.reward,
        row.reward,
        {},
    )
    update = sharding.data_parallel(agent.update, sharding.mesh(1), Parallel.SHARD_MAP, 0)
    state, key = jax.eval_shape(agent.init, jax.random.key(0)), jax.random.key(0)
    flops = measure.matmul_flops(update, state, sample, key)
    return measure.matmul_rate(config.batch_size, max(config.hidden_sizes), options.repeats) / flops


def score(setting: Setting, options: Options, seed: int) -> float:
    """Mean return of greedy episodes after a run of `total_steps`."""
    agent, env = _parts(setting, options, seed)
    loop = _loop(setting, seed, setting.config.total_steps)
    *_, (_, state, _) = off_policy.run(agent, env, off_policy.init(agent, env, loop), loop, 0)
    test = host_envpool.make(setting.env, _EPISODES, 1000 + seed, num_threads=options.num_threads)
    play = evaluation.player(agent, test, _EPISODES, greedy=True)
    return float(np.mean(play(state.train.policy, _EPISODES, jax.random.key(seed)).returns))


def peer_training(peer: str, setting: Setting, options: Options) -> Training:
    """The same of a peer, in a process of its own."""
    job = {**_job(peer, setting, options, 0), "repeats": options.repeats}
    result = PEERS.run(options, job)
    return Training(result["first_update_seconds"], tuple(result["steps_per_second"]))


def peer_score(peer: str, setting: Setting, options: Options, seed: int) -> float:
    """The same of a peer, in a process of its own."""
    job = _job(peer, setting, options, seed)
    job |= {"rows": setting.config.total_steps, "repeats": 0, "episodes": _EPISODES}
    return PEERS.run(options, job)["score"]


def _job(peer: str, setting: Setting, options: Options, seed: int) -> dict[str, Any]:
    """What `peer_sb3` is asked for; both count windows in `rows`."""
    config = setting.config
    common = {
        "learning_rate": config.learning_rate,
        "buffer_size": config.replay_capacity,
        "learning_starts": config.learning_starts,
        "batch_size": config.batch_size,
        "gamma": config.discount,
        "train_freq": config.rollout_length,
        "gradient_steps": config.num_updates,
        "policy_kwargs": {"net_arch": list(config.hidden_sizes)},
    }
    own: dict[str, Any]
    if isinstance(config, sac.Config):
        own = {"tau": config.target_rate}
    else:
        assert isinstance(config, dqn.Config)
        own = {
            "tau": config.target_rate,
            "target_update_interval": round(config.target_period / setting.updates_per_row),
            "exploration_fraction": config.exploration_fraction,
            "exploration_final_eps": config.final_epsilon,
        }
    return {
        "peer": peer,
        "env": setting.env,
        "num_envs": config.num_envs,
        "num_threads": options.num_threads,
        "normalize": False,
        "seed": seed,
        "rows": setting.warm_up,
        "warm_up": 0,
        "window": setting.window / setting.warm_up,
        setting.agent: {**common, **own},
    }


def _parts(setting: Setting, options: Options, seed: int = 0) -> tuple[Agent, HostEnv]:
    num_envs = setting.config.num_envs
    env = host_envpool.make(setting.env, num_envs, seed, num_threads=options.num_threads)
    return registry.agent_module(setting.agent).make(setting.config, env.spec), env


def _loop(setting: Setting, seed: int, total_steps: int, **changes: Any) -> off_policy.Config:
    loop = registry.agent_module(setting.agent).loop(setting.config)
    return dataclasses.replace(loop, seed=seed, total_steps=total_steps, num_devices=1, **changes)
