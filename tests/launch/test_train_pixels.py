"""Runs that see frames, from flags to an update; and the sentences for what cannot be seen."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest

from agents import ppo
from launch import flags, presets, trained
from rljax import sources
from rljax.loops import on_policy

NEW = ["Pong-v5", "MiniGrid-Empty-5x5-v0", "Snake-v1", "Connector-v2", "rljax:pixel_catch"]


def experiment(*arguments):
    return flags.experiment(["launch.train", "--workdir=unused", *arguments])


@pytest.mark.parametrize("env", NEW)
def test_a_preset_starts_and_learns_something(env):
    preset = presets.load("ppo")[env]
    config = dataclasses.replace(
        preset.config, num_envs=2, rollout_length=8, num_minibatches=2, num_epochs=1, total_steps=16
    )
    source = sources.open(sources.EnvSource(env, 2, options=preset.env_options))
    agent = ppo.make(config, source.spec)
    loop = ppo.loop(config)
    start = on_policy.init(agent, source, loop)
    before = jax.tree.map(np.asarray, start.train.params)
    ((_, after, metrics),) = on_policy.run(agent, source, start, loop, 0)
    assert all(np.isfinite(number) for number in metrics.values())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.train.params))
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, after.train.params)
    assert all(any(jax.tree.leaves(changed[group])) for group in changed)


def test_atari_presets_learn_from_lives_and_signs_unless_told_otherwise():
    for env in ("Pong-v5", "envpool:Breakout-v5"):
        options = dict(experiment(f"--env={env}").source.options)
        assert options["episodic_life"] is options["reward_clip"] is True
    given = experiment("--env=Pong-v5", '--env_options={"stack_num": 2}').source.options
    assert given == (("stack_num", 2),)


# CleanRL's table: 8 environments, 128 steps, 4 minibatches of 256, clip 0.1, entropy 0.01
def test_atari_presets_are_cleanrls():
    for env in ("Pong-v5", "Breakout-v5"):
        config = presets.load("ppo")[env].config
        assert (config.num_envs, config.rollout_length, config.num_minibatches) == (8, 128, 4)
        assert (config.learning_rate, config.anneal_learning_rate) == (2.5e-4, True)
        assert (config.clip_ratio, config.clip_value, config.entropy_cost) == (0.1, None, 0.01)
        assert (config.discount, config.gae_lambda, config.num_epochs) == (0.99, 0.95, 4)
        assert config.value_cost * 0.5 == 0.25  # theirs: 0.5 of ½(V - G)²


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("--env=rljax:pixel_catch", "--config.torso=mlp"),
            "config.torso=mlp looks at vectors, and rljax:pixel_catch shows pixels",
        ),
        (
            ("--env=CartPole-v1", "--config.torso=impala"),
            "config.torso=impala looks at pixels, and CartPole-v1 shows vectors: use auto or mlp",
        ),
        (
            ("--env=MiniGrid-Empty-5x5-v0", "--config.torso=nature"),
            r"nature needs frames of 36 x 36 pixels or more, and MiniGrid.* shows \(7, 7, 3\)",
        ),
        (
            ("--env=rljax:pixel_catch", "--config.normalize_observation=True"),
            "config.normalize_observation is of vectors, and rljax:pixel_catch shows pixels alone",
        ),
        (
            ("--env=rljax:pixel_catch", '--env_options={"stack": 0}'),
            "rljax:pixel_catch: stack must be at least 1, not 0",
        ),
        (
            ("--env=rljax:pixel_catch", '--env_options={"stack": "4"}'),
            'rljax:pixel_catch: stack should be an int, got "4"',
        ),
        (
            ("--env=rljax:pixel_catch", '--env_options={"frames": 4}'),
            "rljax:pixel_catch has no option 'frames'; its options: scale, stack",
        ),
        (
            ("--env=Pong-v5", '--env_options={"stack": 4}'),
            "Pong-v5 has no option 'stack'; it has .*stack_num",
        ),
        (
            ("--env=Pong-v5", '--env_options={"stack_num": 0}'),
            "stack_num must be a whole number from 1, not 0",
        ),
    ],
)
def test_what_cannot_be_seen_gets_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        trained.build(experiment(*arguments))
    assert "\n" not in str(caught.value)


def test_a_run_in_which_no_episode_ends_ends_well_and_resumes(tmp_path):
    command = [
        *(sys.executable, "-m", "launch.train", f"--workdir={tmp_path}", "--preset=none"),
        *("--env=rljax:pixel_catch", '--env_options={"scale": 1, "stack": 2}'),
        *("--config.num_envs=2", "--config.rollout_length=4", "--config.num_minibatches=1"),
        *("--config.total_steps=8", "--config.num_epochs=1", "--eval_episodes=0"),
    ]
    for _ in range(2):
        answer = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "checkpoints" / "8").is_dir()
    assert (tmp_path / "result.json").is_file()
    assert not (tmp_path / "plots").exists()  # there is nothing to draw
