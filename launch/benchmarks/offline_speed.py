"""How fast agents learn from a dataset in memory, beside d3rlpy.

    python -m launch.benchmark offline_speed --output=runs/benchmarks/offline_speed.json

The dataset is made up: 100,000 steps, observations of 17 numbers, actions of 6, or one of 6. All
networks have two ReLU layers of 256, all batches 256 rows. Rows, for each agent:

    train/AGENT      updates/s, draws of batches included, compilation apart
    compile/AGENT    s that the first call takes longer than the others; nothing compiled before
    passes/cql       updates/s of CQL with a learned multiplier, beside one that differentiates each
                     of five losses in a pass of its own (`five_pass_cql`), run by the same loop
    ope/bandit       s that all estimators of 10,000 made-up decisions take, with their intervals by
                     1,000 resamples; not where --agents are named

Ours is the loop of `launch.train` without its writers: a window is one call of one program. d3rlpy
draws each batch from its replay buffer and updates once, without its logs and progress bars, on one
thread or on all, whichever is faster.
"""

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from agents import bc, cql, cql_discrete, iql, rebrac, td3_bc
from launch.benchmarks import Options, five_pass_cql
from launch.benchmarks.peers import Peers
from launch.benchmarks.table import Row
from rljax import registry
from rljax.agent import Agent
from rljax.config import UsageError, nearest
from rljax.loops import offline
from rljax.offline import dataset as datasets
from rljax.offline.dataset import Dataset, Episode
from rljax.ope import bandit, table
from rljax.types import Box, Discrete, EnvSpec, Observation

TAKES = ("repeats", "agents", "peers", "peer_python")
PEERS = Peers(
    {"d3rlpy": "d3rlpy"},
    "peer_d3rlpy.py",
    ("torch", "gymnasium", "numpy"),
    target="bench-offline",
    python=pathlib.Path(".venv-d3rlpy/bin/python"),
)
versions = PEERS.versions


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the dataset."""

    episodes: int = 100
    episode_length: int = 1_000
    observation_size: int = 17
    action_size: int = 6  # dimensions, or choices


@dataclasses.dataclass(frozen=True)
class Setting:
    """An agent, and d3rlpy's with the same losses and the same work."""

    config: Any  # of the agent
    window: int  # updates that are timed at once
    discrete: bool
    peer_class: str
    encoders: tuple[str, ...]  # fields of the peer's config that take networks
    peer_options: Mapping[str, Any]
    normalized: tuple[str, ...] = ()  # those of the encoders whose hidden layers are


_WIDTHS = (256, 256)
SETTINGS = {
    "bc": Setting(
        bc.Config(loss=bc.Loss.SQUARED_ERROR, hidden_sizes=_WIDTHS),
        1_000,
        False,
        "BCConfig",
        ("encoder_factory",),
        {"learning_rate": 3e-4},
    ),
    "iql": Setting(
        iql.Config(hidden_sizes=_WIDTHS, anneal_actor_learning_rate=False),
        200,
        False,
        "IQLConfig",
        ("actor_encoder_factory", "critic_encoder_factory", "value_encoder_factory"),
        {"gamma": 0.99, "tau": 0.005, "expectile": 0.7, "weight_temp": 3.0, "max_weight": 100.0},
    ),
    "td3_bc": Setting(
        td3_bc.Config(hidden_sizes=_WIDTHS),
        200,
        False,
        "TD3PlusBCConfig",
        ("actor_encoder_factory", "critic_encoder_factory"),
        {"gamma": 0.99, "tau": 0.005, "alpha": 2.5, "update_actor_interval": 2},
    ),
    # Widths and batch of td3_bc, not of the presets, so that the rows can be compared. At the last
    # step of an episode d3rlpy takes zeros for the next action, where ours subtracts no penalty.
    "rebrac": Setting(
        rebrac.Config(batch_size=256, hidden_sizes=_WIDTHS),
        200,
        False,
        "ReBRACConfig",
        ("actor_encoder_factory", "critic_encoder_factory"),
        {
            "actor_learning_rate": 1e-3,
            "critic_learning_rate": 1e-3,
            "gamma": 0.99,
            "tau": 0.005,
            "actor_beta": 0.01,
            "critic_beta": 0.01,
            "update_actor_interval": 2,
        },
        normalized=("critic_encoder_factory",),
    ),
    # d3rlpy backs up the mean action, where ours draws one.
    "cql": Setting(
        cql.Config(actor_hidden_sizes=_WIDTHS, critic_hidden_sizes=_WIDTHS),
        20,
        False,
        "CQLConfig",
        ("actor_encoder_factory", "critic_encoder_factory"),
        {
            "actor_learning_rate": 3e-5,
            "temp_learning_rate": 3e-5,
            "alpha_learning_rate": 0.0,  # no multiplier is learned
            "conservative_weight": 10.0,
            "n_action_samples": 10,
            "gamma": 0.99,
            "tau": 0.005,
        },
    ),
    "cql_discrete": Setting(
        cql_discrete.Config(hidden_sizes=_WIDTHS),
        500,
        True,
        "DiscreteCQLConfig",
        ("encoder_factory",),
        {"learning_rate": 1e-4, "gamma": 0.99, "alpha": 1.0, "target_update_interval": 1_000},
    ),
}


def rows(options: Options) -> Iterator[Row]:
    """Two rows for each agent. Raises UsageError at once."""
    for agent in options.agents:
        if agent not in SETTINGS:
            raise UsageError(f"no settings for --agents={agent}; {nearest(agent, SETTINGS)}")
    return _rows(options, Sizes())


def _rows(options: Options, sizes: Sizes) -> Iterator[Row]:
    jax.config.update("jax_enable_compilation_cache", False)  # so that compiling is compiling
    for agent in options.agents or SETTINGS:
        setting = SETTINGS[agent]
        make = registry.agent_module(agent).make
        compiling, speeds = ours(agent, make, setting, sizes, options.repeats)
        settings = {
            "steps": sizes.episodes * sizes.episode_length,
            "observation_size": sizes.observation_size,
            "action_size": sizes.action_size,
            "actions": "discrete" if setting.discrete else "real",
            "batch_size": setting.config.batch_size,
            "hidden_sizes": list(_WIDTHS),
        }
        for peer in PEERS.chosen(options) or (None,):
            slow, fast = theirs(setting, sizes, options) if peer else (None, None)
            speed = statistics.median(speeds)
            yield Row(f"train/{agent}", speed, "updates/s", settings, peer, fast, speeds)
            yield Row(f"compile/{agent}", compiling, "s", settings, peer, slow)
        if agent == "cql":
            yield passes(setting, sizes, settings, options.repeats)
    if not options.agents:
        yield estimates(options.repeats)


def passes(setting: Setting, sizes: Sizes, settings: dict[str, Any], repeats: int) -> Row:
    """CQL in as few passes as it takes, beside five."""
    config = dataclasses.replace(setting.config, gap_target=5.0)
    setting = dataclasses.replace(setting, config=config)
    _, fast = ours("cql", cql.make, setting, sizes, repeats)
    _, slow = ours("cql", five_pass_cql.make, setting, sizes, repeats)
    peer = ("five passes", statistics.median(slow))
    return Row("passes/cql", statistics.median(fast), "updates/s", settings, *peer, fast)


def estimates(repeats: int, events: int = 10_000) -> Row:
    """Off-policy evaluation of a bandit, from densities and a model of the rewards on."""
    rng = np.random.default_rng(0)
    clicks = (rng.uniform(size=events) < 0.005).astype(np.float64)
    q, v = rng.uniform(high=0.01, size=(2, events))
    logged = bandit.Events(clicks, rng.normal(scale=0.5, size=events), q, v)
    bootstrap = table.Bootstrap(resamples=1_000)
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        table.evaluate_events(logged, bootstrap=bootstrap)
        seconds.append(time.perf_counter() - start)
    _, *others = seconds
    settings = {"events": events, "resamples": bootstrap.resamples}
    return Row("ope/bandit", statistics.median(others), "s", settings, samples=tuple(others))


def ours(
    agent: str, make: Callable[..., Agent], setting: Setting, sizes: Sizes, repeats: int
) -> tuple[float, tuple[float, ...]]:
    """Seconds to compile, and the updates/s of each window, of what `make` makes."""
    module = registry.agent_module(agent)
    dataset = made_up(sizes, discrete=setting.discrete)
    config = dataclasses.replace(setting.config, total_updates=(1 + repeats) * setting.window)
    learner = make(config, dataset.spec)
    loop = dataclasses.replace(
        module.loop(config), num_devices=1, streamed=False, updates_per_call=setting.window
    )
    run = offline.run(learner, dataset, offline.init(learner, dataset, loop), loop, 0)
    seconds, start = [], time.perf_counter()
    for _ in run:  # its numbers are on the host: nothing is in flight
        now = time.perf_counter()
        seconds.append(now - start)
        start = now
    first, *others = seconds
    compiling = max(1e-3, first - statistics.median(others))  # never 0: ratios divide by it
    return compiling, tuple(setting.window / each for each in others)


def theirs(setting: Setting, sizes: Sizes, options: Options) -> tuple[float, float]:
    """The same of d3rlpy, in a process of its own: seconds, and the median of the updates/s."""
    job = {
        "data": dataclasses.asdict(sizes) | {"discrete": setting.discrete},
        "config": setting.peer_class,
        "options": {"batch_size": setting.config.batch_size, **setting.peer_options},
        "encoders": setting.encoders,
        "normalized": setting.normalized,
        "hidden_sizes": _WIDTHS,
        "window": setting.window,
        "repeats": options.repeats,
    }
    answer = PEERS.run(options, job)
    each = statistics.median(answer["seconds"]) / setting.window
    return max(0.0, answer["first_update_seconds"] - each), 1 / each


def made_up(sizes: Sizes, *, discrete: bool) -> Dataset:
    """Noise: episodes that a time limit ends."""
    count, actions = sizes.action_size, sizes.episode_length
    action_spec = Discrete(count) if discrete else Box((-1.0,) * count, (1.0,) * count)
    spec = EnvSpec("made-up", (sizes.observation_size,), "float32", action_spec)
    rng = np.random.default_rng(0)

    def episode() -> Episode:
        seen = rng.normal(size=(actions + 1, sizes.observation_size)).astype(np.float32)
        action = (
            rng.integers(count, size=actions)
            if discrete
            else rng.uniform(-1, 1, size=(actions, count)).astype(np.float32)
        )
        return Episode(Observation(seen), action, rng.normal(size=actions), False)

    return datasets.make(spec, (episode() for _ in range(sizes.episodes)), "made-up")
