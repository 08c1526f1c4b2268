import json
import shlex

import pytest

import agents
from agents import ppo
from launch import flags, presets
from rljax import config, registry

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
