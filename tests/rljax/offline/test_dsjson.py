import copy
import json

import numpy as np
import pytest

from rljax.offline import dsjson
from rljax.offline.schema import OnFault, Rules
from rljax.types import Discrete

ROW = {
    "_label_cost": -1.0,
    "_label_probability": 0.8,
    "_label_Action": 2,
    "_labelIndex": 1,
    "a": [2, 1],
    "p": [0.8, 0.2],
    "c": {
        "User": [{"name": "Ann", "age": 30, "new": True, "_secret": 4}],
        "_multi": [
            {"_tag": "tea", "i": {"constant": 1, "hot": False}},
            {"_tag": "ice", "i": {"constant": 1}, "j": [{"size": [0.5, 2]}]},
        ],
    },
}
OTHER = {
    "_label_cost": 0,
    "_label_probability": 1.0,
    "_label_Action": 1,
    "_labelIndex": 0,
    "a": [1],
    "p": [1.0],
    "c": {"User": [{"name": "Bob"}], "_multi": [{"j": [{"size": [1, 3]}]}]},
}


def test_rows_by_hand(write_jsonl):
    path = write_jsonl([ROW, OTHER])
    features = dsjson.features(path)
    assert features.context == ("User.age", "User.name=Ann", "User.name=Bob", "User.new")
    assert features.action == ("i.constant", "j.size[0]", "j.size[1]")
    assert features.num_actions == 2
    made, counts, _ = dsjson.read(path)
    assert counts == {"rows": 2}
    np.testing.assert_array_equal(
        made.rows.observation.features[::2],
        np.float32([[30, 1, 0, 1, 1, 0, 0, 1, 0.5, 2], [0, 0, 1, 0, 0, 1, 3, 0, 0, 0]]),
    )
    np.testing.assert_array_equal(made.rows.observation.mask[::2], [[True, True], [True, False]])
    np.testing.assert_array_equal(made.rows.action[::2], [1, 0])
    np.testing.assert_array_equal(made.rows.reward[::2], [1, 0])
    np.testing.assert_allclose(made.rows.extras["log_prob"][::2], np.log([0.8, 1.0]), rtol=1e-6)
    np.testing.assert_array_equal(made.rows.discount[::2], [0, 0])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"_label_cost": "0"}, "reward is '0', not a finite number"),
        ({"_label_probability": 0.7}, "_label_probability is not what p"),
        ({"p": [0.8, 0.8]}, "_label_probability is not what p"),
        ({"_label_Action": 1}, "name two actions"),
        ({"_labelIndex": 2, "_label_Action": 3}, "_labelIndex is 2, and it has 2 actions"),
        ({"_labelIndex": None}, "_labelIndex is None"),
        ({"pdrop": 0.5}, "not supported"),
        ({"Version": "2"}, "its Version is '2'; this reader knows 1"),
        ({"EventId": "e"}, "EventId e is there twice"),
        ({"c": {}}, "describes no action"),
        ({"_label_cost": 10**400}, "reward is 1000"),
        ({"p": [0.8, None]}, "_label_probability is not what p"),
        ({"p": [0.8, 10**400]}, "_label_probability is not what p"),
    ],
)
def test_faults_name_the_line(write_jsonl, change, told):
    path = write_jsonl([ROW | {"Version": "1", "EventId": "e"}, copy.deepcopy(ROW) | change])
    with pytest.raises(ValueError, match=rf"line 2: .*{told}"):
        dsjson.read(path)
    assert dsjson.read(path, Rules(OnFault.DROP)).dataset.num_episodes == 1


def test_a_log_with_unknown_features_is_refused(write_jsonl):
    known = dsjson.features(write_jsonl([ROW], "a.jsonl"))
    path = write_jsonl([ROW, OTHER], "b.jsonl")
    with pytest.raises(ValueError, match="line 2: it has a feature or an action too many"):
        dsjson.read(path, features=known)
    assert dsjson.read(path, Rules(OnFault.DROP), known).dataset.num_episodes == 1


def test_a_feature_that_is_no_finite_number_is_told(write_jsonl):
    row = ROW | {"c": {"User": {"age": 10**400}, "_multi": ROW["c"]["_multi"]}}
    with pytest.raises(ValueError, match=r"line 2: state .* not a finite number"):
        dsjson.read(write_jsonl([ROW, row]))


def test_rows_that_are_not_to_be_learned_from_are_left_and_counted(write_jsonl):
    made, counts, _ = dsjson.read(write_jsonl([ROW, ROW | {"_skipLearn": True}]))
    assert made.num_episodes == 1
    assert counts["rows_skipped"] == 1


def test_other_formats_are_told(write_jsonl):
    with pytest.raises(ValueError, match="it is no decision log"):
        dsjson.read(write_jsonl([{"state": [1]}]))


def test_the_real_logs(shared_data):
    root = shared_data("vw_cb_logs")
    made, counts, _ = dsjson.read(root / "dsjson_cb.json")
    assert counts == {"rows": 23}
    assert made.spec.action == Discrete(4)
    assert not made.spec.has_mask
    rows = [json.loads(line) for line in (root / "dsjson_cb.json").read_text().splitlines()]
    np.testing.assert_array_equal(made.rows.reward[::2], [-row["_label_cost"] for row in rows])
    np.testing.assert_array_equal(made.rows.action[::2], [row["_labelIndex"] for row in rows])
    width = made.spec.observation_shape[0]
    features = dsjson.features(root / "dsjson_cb.json")
    assert width == len(features.context) + 4 * len(features.action)
    assert "FromUrl.weather=Sunny" in features.context
    igl = dsjson.read(root / "igl_3states.dsjson").dataset
    rows = [json.loads(line) for line in (root / "igl_3states.dsjson").read_text().splitlines()]
    assert igl.num_episodes == len(rows) == 200
    chances = [row["_label_probability"] for row in rows]
    np.testing.assert_allclose(igl.rows.extras["log_prob"][::2], np.log(chances), rtol=1e-6)
    with pytest.raises(ValueError, match="several slots"):
        dsjson.read(root / "ccb_data.json")
    with pytest.raises(ValueError, match="no decision log"):
        dsjson.read(root / "cb_test256.json")  # VW's plain JSON: its labels have other names


def test_a_row_that_is_dropped_adds_no_features_and_no_mask(write_jsonl):
    wild = copy.deepcopy(ROW)
    wild["_label_probability"] = 7
    wild["c"]["_multi"] = [{f"g{n}": 1} for n in range(60)]
    empty = {**copy.deepcopy(ROW), "c": {}}
    with pytest.raises(ValueError, match="line 2: _label_probability is not what p"):
        dsjson.read(write_jsonl([ROW, wild]))
    read = dsjson.read(write_jsonl([ROW, wild, ROW, empty]), Rules(on_fault=OnFault.DROP))
    alone = dsjson.read(write_jsonl([ROW], "alone.jsonl"))
    assert read.dataset.num_episodes == 2
    assert (read.dataset.spec.parts, read.dataset.spec.has_mask) == (
        alone.dataset.spec.parts,
        False,
    )


def test_of_a_feature_that_is_there_twice_the_last_counts(write_jsonl):
    path = write_jsonl([ROW])
    path.write_text(path.read_text().replace('"age": 30', '"age": 20, "age": 30'))
    assert dsjson.features(path) == dsjson.features(write_jsonl([ROW], "once.jsonl"))
    assert dsjson.read(path).dataset.rows.observation.features[0, 0] == 30
