import dataclasses
import json
import pathlib
import re
import shlex

import pytest

import agents
from agents import bc, ppo
from launch import d4rl, flags, presets
from rljax import config, registry
from rljax.nn.mlp import Activation

ALL = [
    pytest.param(agent, env, id=f"{agent}-{env}")
    for agent in agents.AGENTS
    for env in presets.load(agent)
]


@pytest.mark.parametrize(("agent", "env"), ALL)
def test_preset_is_valid_and_round_trips(agent, env):
    module, preset = registry.agent_module(agent), presets.load(agent)[env]
    module.validate(preset.config)
    data = json.loads(json.dumps(config.to_json(preset.config), allow_nan=False))
    assert config.from_json(module.Config, data) == preset.config
    assert all((preset.source, preset.hardware, preset.wall_clock, preset.score))


@pytest.mark.parametrize(("agent", "name"), ALL)
def test_the_command_of_a_preset_trains_its_config(agent, name):
    preset = presets.load(agent)[name]
    python, option, script, *arguments = shlex.split(preset.command)
    assert (python, option, script) == ("python", "-m", "launch.train")
    experiment = flags.experiment([script, *arguments])
    assert (experiment.agent, experiment.preset) == (agent, name)
    # One of an environment is found without being asked for; one of a dataset is not.
    assert experiment.source.name == name or f"--preset={name}" in arguments
    assert experiment.config == preset.config


def test_an_agent_without_a_file_has_no_presets():
    assert presets.load("no_such_agent") == {}


# Rows per update and minibatch, from the published tables: envs x steps, batch size.
@pytest.mark.parametrize(
    ("env", "rows", "minibatch"),
    [
        ("CartPole-v1", 8 * 32, 256),
        ("Acrobot-v1", 16 * 256, 64),
        ("LunarLander-v3", 16 * 1024, 64),
        ("LunarLanderContinuous-v3", 16 * 1024, 64),
        ("Pendulum-v1", 4 * 1024, 64),
        ("HalfCheetah-v4", 2048, 64),
    ],
)
def test_ppo_batches_are_the_published_ones(env, rows, minibatch):
    preset = presets.load("ppo")[env].config
    assert preset.num_envs * preset.rollout_length == rows
    assert rows / preset.num_minibatches == minibatch


def test_mujoco_tasks_share_one_config():
    mujoco = {env: p.config for env, p in presets.load("ppo").items() if env.endswith("-v4")}
    assert set(mujoco) == {"HalfCheetah-v4", "Hopper-v4", "Walker2d-v4", "Ant-v4"}
    assert len(set(mujoco.values())) == 1
    assert mujoco["Ant-v4"].reward_scale is ppo.RewardScale.VALUE


COMMON = {
    "total_updates": 1_000_000,
    "batch_size": 256,
    "learning_rate": 3e-4,
    "actor_learning_rate": 3e-4,
    "critic_learning_rate": 3e-4,
    "value_learning_rate": 3e-4,
    "discount": 0.99,
    "target_rate": 0.005,
    "normalize_observation": True,
    "normalize_reward": False,
    "reward_multiplier": 1.0,
    "reward_bias": 0.0,
    "hidden_sizes": (256, 256),
    "activation": Activation.RELU,
}
# What CORL's configs say beside that, and of some datasets alone.
D4RL = {
    "bc": {"loss": bc.Loss.SQUARED_ERROR, "top_fraction": 1.0},
    "td3_bc": {
        "value_weight": 2.5,
        "policy_period": 2,
        "target_noise": 0.2,
        "target_noise_clip": 0.5,
    },
    "iql": {
        "expectile": 0.7,
        "inverse_temperature": 3.0,
        "max_weight": 100.0,
        "anneal_actor_learning_rate": True,
        "deterministic": False,
        "initial_log_std": 0.0,
    },
    "cql": {
        "actor_learning_rate": 3e-5,
        "actor_hidden_sizes": (256,) * 3,
        "critic_hidden_sizes": (256,) * 3,
        "conservative_weight": 10.0,
        "num_draws": 10,
        "importance_sampling": True,
        "gap_target": None,
        "gap_min": None,
        "gap_max": None,
        "max_target_backup": False,
        "backup_entropy": False,
        "cloning_updates": 0,
        "learn_temperature": True,
        "target_entropy": None,
        "log_std_multiplier": 1.0,
        "log_std_offset": -1.0,
    },
    "rebrac": {
        "batch_size": 1024,
        "actor_learning_rate": 1e-3,
        "critic_learning_rate": 1e-3,
        "policy_period": 2,
        "normalize_observation": False,
        "hidden_sizes": (256,) * 3,
    },
}
IQL_ON_HOPPER = {"deterministic": True, "target_rate": 0.001, "normalize_reward": True}
PENALTIES = [  # of ReBRAC, as they follow one another in launch/d4rl.py
    *[(0.001, 0.01), (0.01, 0.001), (0.01, 0.1)],  # halfcheetah
    *[(0.01, 0.01), (0.05, 0.5), (0.1, 0.01)],  # hopper
    *[(0.05, 0.1), (0.05, 0.01), (0.01, 0.01)],  # walker2d
    *[(0.003, 0.001)] * 3,  # maze2d
    *[(0.003, 0.002), (0.003, 0.001), (0.001, 0.0005)],  # antmaze to medium-play
    *[(0.001, 0.0), (0.002, 0.001), (0.002, 0.002)],
    *[(0.1, 0.5), (0.05, 0.5), (0.01, 0.01)],  # pen
    *[(0.1, 0.1), (0.01, 0.1), (0.05, 0.01)],  # door
    *[(0.01, 0.5), (0.1, 0.5), (0.01, 0.01)],  # hammer
    *[(0.1, 0.01), (0.1, 0.01), (0.05, 0.01)],  # relocate
]
REBRAC_ELSEWHERE = {"batch_size": 256, "actor_learning_rate": 3e-4, "critic_learning_rate": 3e-4}
CQL_ON_ANTMAZE = {
    "actor_learning_rate": 1e-4,
    "conservative_weight": 5.0,
    "gap_target": 0.8,
    "gap_min": -200.0,
    "max_target_backup": True,
    "normalize_observation": False,
    "reward_multiplier": 10.0,
    "reward_bias": -5.0,
    "critic_hidden_sizes": (256,) * 5,
}
ALONE = {
    ("iql", "hopper-medium-v2"): IQL_ON_HOPPER,
    ("iql", "hopper-medium-replay-v2"): IQL_ON_HOPPER,
    ("iql", "hopper-medium-expert-v2"): {"expectile": 0.5, "inverse_temperature": 6.0},
    ("cql", "hopper-medium-v2"): {"normalize_reward": True},
}
OF_TASK = {
    ("td3_bc", "antmaze"): {"reward_bias": -1.0},
    ("iql", "antmaze"): {"reward_bias": -1.0, "expectile": 0.9, "inverse_temperature": 10.0},
    ("cql", "antmaze"): CQL_ON_ANTMAZE,
    ("cql", "maze2d"): {"gap_target": 5.0},
    ("rebrac", "maze2d"): REBRAC_ELSEWHERE,
    ("rebrac", "antmaze"): REBRAC_ELSEWHERE
    | {"discount": 0.999, "critic_learning_rate": 5e-5, "reward_multiplier": 100.0},
}
for task in ("pen", "door", "hammer", "relocate"):
    OF_TASK["cql", task] = {"actor_learning_rate": 1e-4, "conservative_weight": 1.0}
    OF_TASK["rebrac", task] = REBRAC_ELSEWHERE


@pytest.mark.parametrize("agent", D4RL)
def test_presets_of_d4rl_are_the_published_configs(agent):
    found = presets.load(agent)
    unlike = set(d4rl.ADROIT) if agent == "iql" else set()  # which has dropout there
    assert set(d4rl.PUBLISHED) - set(found) == unlike
    for name, penalties in zip(d4rl.PUBLISHED, PENALTIES, strict=True):
        if name in unlike:
            continue
        config = found[name].config
        fields = {field.name for field in dataclasses.fields(config)}
        due = {key: value for key, value in COMMON.items() if key in fields} | D4RL[agent]
        due |= OF_TASK.get((agent, name.partition("-")[0]), {}) | ALONE.get((agent, name), {})
        if agent == "rebrac":
            due |= dict(zip(("actor_penalty", "critic_penalty"), penalties, strict=True))
        assert {key: getattr(config, key) for key in due} == due, name


def test_published_scores_are_those_of_the_documentation():
    text = (pathlib.Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    rows = re.findall(r"^\| `(\S+-v[12])` \|(.*)\|$", text, re.MULTILINE)
    means = {name: [cell.split()[0] for cell in cells.split("|")] for name, cells in rows}
    assert means == {name: list(scores.values()) for name, scores in d4rl.PUBLISHED.items()}
