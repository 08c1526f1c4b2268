import bz2
import json

import numpy as np
import pytest

from rljax.offline import reagent
from rljax.offline.schema import OnFault, Rules, Unfinished
from rljax.types import Box, Discrete


def row(mdp, step, action="4", **more):
    return {
        "mdp_id": mdp,
        "sequence_number": step,
        "state_features": {"0": float(step), "1": 0.5},
        "action": {action: 1.0},
        "propensity": 0.95,
        "reward": 1.0 + step,
        "next_state_features": {"0": step + 1.0, "1": 0.5},
        "next_action": {"4": 1.0},
        "possible_actions": [{"4": 1.0}, {"5": 1.0}],
        "possible_next_actions": [{"4": 1.0}, {"5": 1.0}],
    } | more


OVER = {"possible_next_actions": [], "next_action": {}}


def test_an_episode_by_hand(write_jsonl):
    rows = [row("7", 1, "5", **OVER), row("10", 0, **OVER), row("7", 0)]
    made, counts, _ = reagent.read(write_jsonl(rows))
    first, second = made.episodes()
    np.testing.assert_array_equal(first.observation.features[:, 0], [0, 1, 2])
    np.testing.assert_array_equal(first.action, [0, 1])
    np.testing.assert_array_equal(first.reward, [1, 2])
    np.testing.assert_allclose(first.extras["log_prob"], np.log(0.95), rtol=1e-6)
    assert first.terminated
    assert len(second.reward) == 1
    assert made.spec.action == Discrete(2)
    assert not made.spec.has_mask
    assert counts == {"rows": 3}


def test_a_time_limit_is_no_termination(write_jsonl):
    rows = [row("7", 0), row("7", 1, **OVER), row("8", 0, **OVER)]
    made = reagent.read(write_jsonl(rows), time_limit=2).dataset
    first, second = made.episodes()
    assert (len(first.reward), first.terminated) == (2, False)
    np.testing.assert_array_equal(first.observation.features[:, 0], [0, 1, 2])
    assert second.terminated


def test_actions_that_are_not_always_possible_are_masked(write_jsonl):
    only = [{"5": 1.0}]
    rows = [
        row("7", 0, possible_next_actions=only),
        row("7", 1, "5", possible_actions=only, **OVER),
    ]
    made = reagent.read(write_jsonl(rows)).dataset
    np.testing.assert_array_equal(
        made.rows.observation.mask, [[True, True], [False, True], [False, True]]
    )
    rows[1]["action"] = {"4": 1.0}
    with pytest.raises(ValueError, match="line 2: the action 0 is not among those"):
        reagent.read(write_jsonl(rows))
    rows[1]["action"] = {"9": 1.0}
    with pytest.raises(ValueError, match=r"line 2: its action .* is among no possible_actions"):
        reagent.read(write_jsonl(rows))


def test_an_episode_goes_on_where_nothing_was_said_to_be_possible(write_jsonl):
    rows = [row("7", 0, **OVER), row("7", 1, "5", possible_actions=[], **OVER)]
    made, counts, _ = reagent.read(write_jsonl(rows))
    np.testing.assert_array_equal(made.rows.discount, [1, 0, 1])
    assert not made.spec.has_mask
    assert counts == {"rows": 2, "rows_without_possible_actions": 1}


def test_actions_may_be_names(write_jsonl):
    names = {"possible_actions": ["10", "9"], "possible_next_actions": ["10", "9"]}
    rows = [row("7", 0, **names) | {"action": "10"}, row("7", 1, **(names | OVER))]
    rows[1]["action"] = "9"
    made = reagent.read(write_jsonl(rows)).dataset
    np.testing.assert_array_equal(made.rows.action, [1, 0, 0])  # as numbers: 9 before 10


def test_actions_without_a_choice_are_vectors(write_jsonl):
    rows = [row("7", i, possible_actions=[], possible_next_actions=[]) for i in range(2)]
    rows[0]["action"], rows[1]["action"] = {"3": -0.5}, {"3": 1.5}
    rows[1]["next_action"] = {}
    made = reagent.read(write_jsonl(rows)).dataset
    assert made.spec.action == Box((-0.5,), (1.5,))
    np.testing.assert_array_equal(made.rows.action, np.float32([[-0.5], [1.5], [0]]))
    assert made.episode(0).terminated


@pytest.mark.parametrize("action", [{"4": [1]}, {"4": 10**400}, [4], None, 4])
def test_an_action_of_another_form_is_told(write_jsonl, action):
    rows = [row("7", 0), row("7", 1, **OVER) | {"action": action}]
    with pytest.raises(ValueError, match=r"line 2: its action .* is among no possible_actions"):
        reagent.read(write_jsonl(rows))


def test_another_log_is_told(write_jsonl):
    with pytest.raises(ValueError, match="it is no event log of ReAgent"):
        reagent.read(write_jsonl([{"state": [1.0]}]))


def test_cartpole_of_reagent(shared_data):
    path = shared_data("reagent_event_logs") / "cartpole_training.json.bz2"
    made, counts, _ = reagent.read(path, time_limit=200)
    assert counts == {"rows": 3925, "rows_without_possible_actions": 26}
    assert (made.num_episodes, made.num_steps) == (26, 3925)
    lengths = np.diff(made.starts) - 1
    assert (lengths == 200).sum() == 16  # CartPole-v0 stops there
    ended = np.array([episode.terminated for episode in made.episodes()])
    np.testing.assert_array_equal(ended, lengths < 200)
    np.testing.assert_array_equal(made.returns(), lengths)  # 1 a step
    with bz2.open(path, "rt") as file:
        rows = sorted(map(json.loads, file), key=lambda x: (int(x["mdp_id"]), x["sequence_number"]))
    valid = made.rows.valid
    states = np.float32([[x["state_features"][str(i)] for i in range(4)] for x in rows])
    np.testing.assert_array_equal(made.rows.observation.features[valid], states)
    np.testing.assert_array_equal(made.rows.action[valid], ["5" in x["action"] for x in rows])
    logs = np.log([x["propensity"] for x in rows])
    np.testing.assert_allclose(made.rows.extras["log_prob"][valid], logs, rtol=1e-6)
    following = np.float32([[x["next_state_features"][str(i)] for i in range(4)] for x in rows])
    behind = np.flatnonzero(valid) + 1
    np.testing.assert_allclose(made.rows.observation.features[behind], following, rtol=1e-6)


def test_a_thinned_out_log_has_steps_missing(shared_data):
    path = shared_data("reagent_event_logs") / "cartpole_training_data.json"
    with pytest.raises(ValueError, match="of its episode is due"):
        reagent.read(path)
    rules = Rules(OnFault.DROP, sort=True, unfinished=Unfinished.TRUNCATED)
    made, counts, _ = reagent.read(path, rules)
    # 33 of its 41 episodes have gaps
    assert made.num_episodes == 8
    assert counts["episodes_dropped"] == 33
    assert made.num_steps == 162 - counts["rows_dropped"]


def test_rules_that_say_nothing_of_it_leave_rows_sorted(write_jsonl):
    path = write_jsonl([row("7", 1, "5", **OVER), row("7", 0), row("8", 0, **OVER)])
    read = reagent.read(path, Rules(on_fault=OnFault.DROP))
    assert [len(each.reward) for each in read.dataset.episodes()] == [2, 1]
    with pytest.raises(ValueError, match="put rows in order"):
        reagent.read(path, Rules(sort=False))
