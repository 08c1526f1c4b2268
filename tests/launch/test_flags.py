import dataclasses
import enum
import os

import pytest

import launch.presets
from agents import ppo
from launch import experiment as experiments
from launch import flags
from launch.experiment import Collector, Parallel
from rljax.config import UsageError
from rljax.metrics.progress import Progress
from rljax.metrics.writers import Logging, Sink
from rljax.sources import EnvSource

BASE = ["train", "--env=Acrobot-v1", "--workdir=runs/x"]
ACROBOT = launch.presets.load("ppo")["Acrobot-v1"].config


def _config(*arguments):
    return flags.experiment([*BASE, *arguments]).config


def test_without_further_flags_it_is_the_preset_of_the_environment():
    assert flags.experiment(BASE) == experiments.Experiment(
        source=EnvSource("Acrobot-v1", num_envs=16, seed=0, num_threads=0, options=()),
        agent="ppo",
        config=ACROBOT,
        preset="Acrobot-v1",
        seed=0,
        workdir="runs/x",
        parallel=Parallel.SHARD_MAP,
        num_devices=0,
        collector=Collector.AUTO,
        checkpoint_every=100_000,  # a tenth of 1M
        eval_every=100_000,
        eval_episodes=10,
        log_every=None,
        logging=Logging((Sink.JSONL,), "rljax", Progress.AUTO),
    )


def test_every_flag_reaches_the_experiment():
    experiment = flags.experiment(
        [
            "train",
            "--agent=ppo",
            "--env=envpool:Acrobot-v1",
            '--env_options={"max_episode_steps": 9, "a": [1, 2]}',
            "--preset=CartPole-v1",
            "--seed=3",
            "--workdir=~/x",
            "--parallel=pmap",
            "--num_devices=2",
            "--collector",
            "host",
            "--num_threads=4",
            "--checkpoint_every=1e4",
            "--eval_every=0",
            "--eval_episodes=7",
            "--log_every=5",
            "--writers=wandb",  # besides metrics.jsonl
            "--wandb_project=p",
            "--progress=off",
        ]
    )
    options = (("a", (1, 2)), ("max_episode_steps", 9))
    assert experiment == experiments.Experiment(
        source=EnvSource("envpool:Acrobot-v1", 8, seed=24, num_threads=4, options=options),
        agent="ppo",
        config=launch.presets.load("ppo")["CartPole-v1"].config,
        preset="CartPole-v1",
        seed=3,
        workdir=os.path.expanduser("~/x"),
        parallel=Parallel.PMAP,
        num_devices=2,
        collector=Collector.HOST,
        checkpoint_every=10_000,
        eval_every=0,
        eval_episodes=7,
        log_every=5,
        logging=Logging((Sink.JSONL, Sink.WANDB), "p", Progress.OFF),
    )


@pytest.mark.parametrize(
    ("env", "preset"),
    [
        ("Acrobot-v1", "Acrobot-v1"),
        ("envpool:Acrobot-v1", "Acrobot-v1"),  # the same task
        ("rljax:cartpole", "rljax:cartpole"),
        ("cartpole", "none"),
        ("MountainCar-v0", "none"),
    ],
)
def test_the_preset_follows_the_environment(env, preset):
    assert flags.experiment(["train", f"--env={env}", "--workdir=x"]).preset == preset


def test_preset_none_is_the_agents_own_config():
    assert _config("--preset=none") == ppo.Config()


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        (["--config.learning_rate=1e-3"], {"learning_rate": 1e-3}),
        (["--config.learning_rate", "1e-3"], {"learning_rate": 1e-3}),
        (["-config.initial_log_std", "-0.5"], {"initial_log_std": -0.5}),
        (["--noconfig.normalize_observation"], {"normalize_observation": False}),
        (["--config.normalize_observation=False"], {"normalize_observation": False}),
        (["--config.anneal_clip_ratio"], {"anneal_clip_ratio": True}),
        (["--config.hidden_sizes=128,128"], {"hidden_sizes": (128, 128)}),
        (["--config.hidden_sizes=(128,128)"], {"hidden_sizes": (128, 128)}),
        (["--config.clip_value=0.2"], {"clip_value": 0.2}),
        (["--config.clip_value=0.2", "--config.clip_value=None"], {"clip_value": None}),
        (["--config.reward_scale=value"], {"reward_scale": ppo.RewardScale.VALUE}),
        (["--config.total_steps=2e6"], {"total_steps": 2_000_000}),
    ],
)
def test_config_flags_change_fields_of_the_preset(arguments, changes):
    assert _config(*arguments) == dataclasses.replace(ACROBOT, **changes)


def test_one_command_line_leaves_nothing_behind_for_the_next():
    flags.experiment([*BASE, "--seed=5", "--config.learning_rate=1", "--parallel=pmap"])
    again = flags.experiment(BASE)
    assert (again.seed, again.config, again.parallel) == (0, ACROBOT, Parallel.SHARD_MAP)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--agnet=ppo", "unknown flag --agnet; did you mean --agent?"),
        ("--learning_rate=1", "unknown flag --learning_rate; did you mean --config.learning_rate?"),
        ("--config.discout=1", "unknown field --config.discout; did you mean --config.discount?"),
        ("--noconfig.zzz", "unknown field --noconfig.zzz; known: --config.activation, "),
        ("--agent=poo", "unknown agent 'poo'; did you mean ppo? "),
        ("--preset=Acrobot", "unknown preset 'Acrobot'; did you mean Acrobot-v1?"),
        ("--config.num_envs=8.5", "--config.num_envs=8.5: should be an int, got '8.5'."),
        ("--config.discount=high", "--config.discount=high: should be a float, got 'high'."),
        (
            "--config.normalize_advantage=maybe",
            "--config.normalize_advantage=maybe: should be true or false, got 'maybe'.",
        ),
        ("--config.activation=gelu", "--config.activation=gelu: should be one of tanh, relu, elu"),
        ("--config.hidden_sizes=64,x", "--config.hidden_sizes=64,x: should be a tuple, each item"),
        ("--config=ppo", "--config=ppo: only its fields can be set, --config.<field>=value."),
        ("--config.num_envs=0", "config.num_envs must be positive"),
        ("--config.num_minibatches=3", "config.num_minibatches=3 does not divide"),
        ("--config.learning_rate=inf", "config.learning_rate must be a finite number, not inf"),
        ("--config.max_grad_norm=nan", "config.max_grad_norm must be a finite number, not nan"),
        ("--config.num_epochs=2147483648", "config.num_epochs must be at most 2,147,483,647"),
        ("--config.hidden_sizes=8,1000000000000", "config.hidden_sizes must be at most"),
        ("--config.discount=1.5", "config.discount must lie in [0, 1]"),
        ("--seed=-1", "--seed=-1: should be at least 0."),
        ("--log_every=0", "--log_every=0: should be at least 1."),
        ("--num_devices=two", "--num_devices=two: should be an int, got 'two'."),
        ("--collector=hots", "--collector=hots: should be one of auto, host, envpool_xla"),
        ("--seed=2147483648", "--seed must be less than 2147483648"),
        ("--writers=jsonl,csv", "--writers=jsonl,csv: should be a tuple, each item one of jsonl"),
        ("--env_options=[1]", "--env_options should be a JSON object such as"),
        ("--env_options={", "--env_options should be a JSON object such as"),
        ("--env=", "--env is missing; there are presets for CartPole-v1, "),
        ("--workdir=", "--workdir is missing"),
        ("stray", "unexpected argument 'stray'"),
        ("--seed", "Missing value for flag --seed"),
    ],
)
def test_bad_input_is_one_sentence_that_names_what_is_right(argument, message):
    with pytest.raises(UsageError) as error:
        flags.experiment([*BASE, argument])
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


class Kind(enum.Enum):
    ADAM = "adam"
    SGD = "sgd"


@dataclasses.dataclass(frozen=True)
class Optimizer:
    rate: float = 0.1  # per step
    kind: Kind = Kind.ADAM


@dataclasses.dataclass(frozen=True)
class Nested:
    total_steps: int = 20
    num_envs: int = 1
    optimizer: Optimizer = Optimizer()


def test_nested_configs_have_flags_by_path(monkeypatch):
    class Module:
        Config = Nested

        def validate(config):
            assert isinstance(config, Nested)

    monkeypatch.setattr(flags.registry, "agent_module", lambda name: Module)
    changed = _config("--config.optimizer.kind=sgd", "--preset=none", "--config.optimizer.rate=2")
    assert changed == Nested(optimizer=Optimizer(2.0, Kind.SGD))
    with pytest.raises(UsageError, match=r"did you mean --config\.optimizer\.rate "):
        _config("--preset=none", "--config.optimizer.rat=2")


def test_runs_of_different_seeds_share_no_environment():
    seeds = set()
    for seed in range(20):
        source = flags.experiment(
            ["train", "--env=Acrobot-v1", "--workdir=x", f"--seed={seed}"]
        ).source
        mine = set(range(source.seed, source.seed + source.num_envs))
        assert not mine & seeds
        seeds |= mine


def test_without_an_env_a_dataset_is_learned_from_and_nothing_is_played():
    command = ["train", "--agent=bc", "--dataset=log.jsonl", "--preset=none", "--workdir=run"]
    assert flags.experiment(command).eval_episodes == 0
    assert flags.experiment([*command, "--eval_episodes=0"]).eval_episodes == 0
    with pytest.raises(UsageError, match="--eval_episodes needs an --env to play them in"):
        flags.experiment([*command, "--eval_episodes=3"])
