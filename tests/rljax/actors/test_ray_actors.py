"""Ray actors: the same numbers as threads, deaths survived, failures in one sentence."""

import dataclasses
import logging
import socket
import sys

import jax
import numpy as np
import pytest

from agents import ppo
from rljax import rollout, sources
from rljax.actors import ray_actors
from rljax.actors.base import ActorError, Job, Work
from rljax.actors.ray_actors import Ray, RayFleet
from rljax.actors.threads import Threads
from rljax.loops import actor_learner

pytest.importorskip("ray")

AGENT = ppo.Config(
    total_steps=8 * 8 * 4,
    num_envs=8,
    rollout_length=8,
    num_minibatches=1,
    num_epochs=1,
    hidden_sizes=(4,),
)
INNER = dataclasses.replace(ppo.loop(AGENT), seed=3, num_devices=1, collector=rollout.Kind.HOST)
RAY = Ray("ppo", AGENT)
LOOP = actor_learner.Config(INNER, RAY, num_actors=2, staleness=1, timeout_seconds=120.0)
SOURCE = sources.EnvSource("CartPole-v1", AGENT.num_envs, seed=11)


@pytest.fixture(scope="module")
def cluster():
    """One for all tests: it takes seconds to start."""
    ray = ray_actors.import_ray()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else it writes a token into the home directory
        ray_actors.connect(ray, "", num_actors=4)
        yield ray
        ray.shutdown()


def params(loop):
    """Parameters after every update of a run, and its metrics."""
    if isinstance(loop.actors, Threads):
        pools = sources.open_pools(SOURCE, loop.num_actors)
    else:
        pools = sources.describe_pools(SOURCE, loop.num_actors)
    agent = ppo.make(AGENT, pools.spec)
    start = actor_learner.init(agent, pools, loop)
    run = actor_learner.run(agent, pools, start, loop, 0)
    seen = [(jax.device_get(state.train.params), metrics) for _, state, metrics in run]
    return zip(*seen, strict=True)


@pytest.fixture
def fleet(cluster):
    """Makes fleets of one actor with two environments, and ends them."""
    made = []

    def make(source=SOURCE, timeout_seconds=120.0, **settings):
        source = dataclasses.replace(source, num_envs=2)
        work = Work(
            *(None, (0,), 2, 8, rollout.Kind.HOST, jax.random.key(0)),
            staleness=1,
            timeout_seconds=timeout_seconds,
        )
        made.append(RayFleet(work, [source], dataclasses.replace(RAY, **settings)))
        return made[-1]

    yield make
    for each in made:
        each.close()
        each.close()  # no harm


def job(number):
    spec = sources.describe_pools(SOURCE, 1).spec
    policy = ppo.make(AGENT, spec).init(jax.random.key(1)).policy
    return Job(number, number, policy, jax.random.fold_in(jax.random.key(2), number))


def test_they_collect_what_threads_collect(cluster):
    ours, (*_, metrics) = params(LOOP)
    assert len(ours) == 4
    assert (metrics["actor/restarts"], metrics["actor/staleness"]) == (0, 1)
    for stage in ("collect", "actor_env", "actor_inference", "queue_wait_actor"):
        assert metrics[f"time/{stage}_seconds"] > 0
    theirs, _ = params(dataclasses.replace(LOOP, actors=Threads()))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        # XLA has fewer threads there: the last bits may differ
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_an_actor_that_dies_is_started_anew_and_collects_its_rollouts_again(cluster, fleet, caplog):
    actors = fleet(max_restarts=1)
    actors.submit(job(0))
    (first,) = actors.gather(0)
    cluster.kill(actors._seats[0].actor)
    actors.submit(job(1))  # to a dead one
    actors.submit(job(2))
    with caplog.at_level(logging.WARNING):
        (second,) = actors.gather(1)
    assert "Actor 0 died; it is started anew (1 of 1) and collects rollout 1 again" in caplog.text
    (third,) = actors.gather(2)
    assert actors.restarts == 1
    assert [each.version for each in (first, second, third)] == [0, 1, 2]
    starts = [each.trajectory.transitions.observation.features[0] for each in (first, second)]
    np.testing.assert_array_equal(*starts)  # its simulators began again
    ends = second.trajectory.last_observation.features
    np.testing.assert_array_equal(ends, third.trajectory.transitions.observation.features[0])

    actors._seats[0].deaths = 1  # as if it had died without giving rollout 3
    cluster.kill(actors._seats[0].actor)
    actors.submit(job(3))
    with pytest.raises(ActorError, match=r"actor 0 died 2 times without giving rollout 3, and --a"):
        actors.gather(3)


def test_what_an_actor_raises_is_told_in_its_own_words(fleet):
    options = (("wind", 3),)
    actors = fleet(dataclasses.replace(SOURCE, options=options))
    actors.submit(job(0))
    with pytest.raises(
        ActorError, match=r"^actor 0 failed while starting: ValueError: CartPole-v1 has no option"
    ) as error:
        actors.gather(0)
    assert isinstance(error.value.__cause__, ValueError)


def test_an_actor_that_gives_nothing_in_time_is_told(fleet):
    actors = fleet(timeout_seconds=0.1)
    actors.submit(job(0))
    with pytest.raises(
        ActorError, match=r"actor 0 gave no rollout within 0\.1 seconds: it was starting, with Cart"
    ):
        actors.gather(0)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    pools = sources.describe_pools(SOURCE, 2)
    with pytest.raises(ImportError, match=r"pip install 'rljax\[ray\]'"):
        actor_learner.check(pools, LOOP)


@pytest.mark.parametrize("address", ["nonsense", "localhost:{}"])
def test_a_cluster_that_is_not_there_is_told_at_once(address):
    with socket.create_server(("localhost", 0)) as server:
        address = address.format(server.getsockname()[1])  # nobody listens once it is closed
    ray = ray_actors.import_ray()
    with pytest.raises(ActorError, match=f"there is no Ray cluster at --ray_address={address}: "):
        ray_actors.connect(ray, address, num_actors=1)
