"""The rows and numbers that must stop a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import faults
from rljax.types import Observation, Transition

T, B, A = 3, 2, 4


def rows(*, named: bool = False, masked: bool = False) -> Transition:
    features = jnp.zeros((T, B, 5))
    if named:
        features = {"image": jnp.zeros((T, B, 3, 3, 1), jnp.uint8), "vector": features}
    mask = jnp.ones((T, B, A), bool) if masked else None
    ones = jnp.ones((T, B))
    return Transition(
        Observation(features, mask), jnp.zeros((T, B), int), ones, ones, ones.astype(bool), {}
    )


def found(transitions: Transition) -> tuple[int, int, int]:
    kind, row, env = jax.jit(faults.find)(transitions)
    return int(kind), int(row), int(env)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_good_rows_have_no_fault(named, masked):
    fault = faults.find(rows(named=named, masked=masked))
    assert int(fault.kind) == 0
    faults.check(fault, "CartPole-v1", 0, B)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_reward_is_found_where_it_is(bad):
    good = rows()
    assert found(good._replace(reward=good.reward.at[1, 1].set(bad))) == (1, 1, 1)


def test_a_bad_observation_is_found_in_any_part():
    good = rows(named=True)
    features = good.observation.features
    features = features | {"vector": features["vector"].at[2, 0, 4].set(jnp.nan)}
    assert found(good._replace(observation=Observation(features))) == (2, 2, 0)


def test_the_first_of_several_is_told():
    good = rows()
    features = good.observation.features.at[1, 0, 0].set(jnp.nan)
    both = good._replace(
        reward=good.reward.at[0, 1].set(jnp.nan), observation=Observation(features)
    )
    assert found(both) == (1, 0, 1)


def test_a_mask_that_forbids_everything_counts_on_valid_rows_only():
    good = rows(masked=True)
    mask = good.observation.mask.at[2, 1].set(False)
    bad = good._replace(observation=Observation(good.observation.features, mask))
    assert found(bad) == (3, 2, 1)
    assert found(bad._replace(valid=good.valid.at[2, 1].set(False)))[0] == 0


def test_the_sentence_names_step_and_environment():
    good = rows()
    fault = faults.find(good._replace(reward=good.reward.at[1, 1].set(jnp.nan)))
    with pytest.raises(faults.RunFault, match=r"^Pong-v5 gave a reward .* at step 103 in env.* 1:"):
        faults.check(fault, "Pong-v5", 100, B)  # 100 + row 1 · 2 environments + environment 1


def test_metrics_of_learning_must_be_finite():
    faults.check_metrics(10, {"loss/policy": jnp.float32(1.0), "time/x": float("nan")})
    with pytest.raises(faults.RunFault, match=r"loss/value is nan after the update .* step 10"):
        faults.check_metrics(10, {"loss/value": jnp.float32(jnp.nan)})
