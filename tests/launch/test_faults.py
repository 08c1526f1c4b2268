"""A run that meets numbers that are none ends in one sentence, and its checkpoint stays."""

import dataclasses
import json

import jax.numpy as jnp
import pytest

from launch import command_line, flags, train
from rljax import checkpoint, sources
from rljax.envs import cartpole
from rljax.types import Observation


def run(workdir, *arguments):
    argv = [
        "launch.train",
        *("--env=rljax:cartpole", f"--workdir={workdir}", "--config.total_steps=2048"),
        *("--eval_episodes=0", "--checkpoint_every=256", "--progress=off", *arguments),
    ]
    with pytest.raises(SystemExit) as end:
        command_line.run(train.main, flags_parser=flags.parse, argv=argv)
    return end.value.code


def broken(what):
    """CartPole that goes wrong at the 150th step of every environment."""
    env = cartpole.make()
    spec = dataclasses.replace(env.spec, has_mask=what == "mask")

    def observe(observation, elapsed):
        late = elapsed >= 150
        features = observation.features
        if what == "observation":
            features = jnp.where(late, jnp.nan, features)
        mask = jnp.broadcast_to(~late, (2,)) if what == "mask" else None
        return Observation(features, mask)

    def reset(key):
        state, observation = env.reset(key)
        return (state, jnp.int32(0)), observe(observation, jnp.int32(0))

    def step(state, action, key):
        inner, elapsed = state
        inner, timestep = env.step(inner, action, key)
        elapsed += 1
        reward = timestep.reward
        if what == "reward":
            reward = jnp.where(elapsed >= 150, jnp.nan, reward)
        timestep = timestep._replace(
            observation=observe(timestep.observation, elapsed),
            reward=reward,
            terminated=jnp.bool_(False),
            truncated=jnp.bool_(False),
        )
        return (inner, elapsed), timestep

    return env._replace(spec=spec, reset=reset, step=step)


@pytest.mark.parametrize("agent", ["ppo", "dqn"])
@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("reward", "gave a reward that is not finite, at step 1,192"),  # row 149 of 8 environments
        ("observation", "showed an observation that is not finite, at step 1,200"),
        ("mask", "forbade every action by its mask, at step 1,200"),
    ],
)
def test_a_broken_environment_stops_the_run(what, sentence, agent, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sources, "_in_graph", lambda name, options: broken(what))
    extra = ["--config.learning_starts=256"] if agent == "dqn" else []
    code = run(tmp_path / "run", f"--agent={agent}", "--config.num_envs=8", *extra)
    message = capsys.readouterr().err
    assert code == 2, message
    assert sentence in message
    assert "Traceback" not in message
    assert checkpoint.Manager(tmp_path / "run" / "checkpoints").steps[-1] == 1024


def test_actors_of_a_broken_environment_stop_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sources, "_in_graph", lambda name, options: broken("reward"))
    code = run(tmp_path / "run", "--actor_threads=2", "--config.num_envs=8")
    message = capsys.readouterr().err
    assert code == 2, message
    assert "gave a reward that is not finite, at step 1,192" in message
    assert checkpoint.Manager(tmp_path / "run" / "checkpoints").steps[-1] == 1024


def test_learning_that_explodes_stops_the_run(tmp_path, capsys):
    code = run(tmp_path / "run", "--config.learning_rate=1e38", "--config.num_envs=8")
    message = capsys.readouterr().err
    assert code == 2, message
    assert "a smaller learning rate may help" in message
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all("NaN" not in json.dumps(json.loads(line)) for line in lines)
