import dataclasses
import json

import numpy as np
import pytest

from rljax.offline import schema
from rljax.offline.schema import Columns, Faults, OnFault


def test_names_of_columns_come_from_a_dict_yaml_or_json(tmp_path):
    expected = Columns(reward="clicks", state=("age", "price"), time=None)
    names = {"reward": "clicks", "state": ["age", "price"], "time": None}
    (tmp_path / "c.json").write_text(json.dumps(names))
    (tmp_path / "c.yaml").write_text("reward: clicks\nstate: [age, price]\ntime: null\n")
    assert schema.load_columns(names) == expected
    assert schema.load_columns(tmp_path / "c.json") == expected
    assert schema.load_columns(tmp_path / "c.yaml") == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rewrad: clicks\n", "rewrad is no known field; did you mean reward"),
        ("reward: 3\n", "reward should be a string, got 3"),
        ("- reward\n", "must hold names of columns"),
        ("reward: [\n", "cannot be read as names of columns"),
    ],
)
def test_wrong_names_are_told_in_a_sentence(tmp_path, text, told):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=told) as caught:
        schema.load_columns(tmp_path / "c.yaml")
    assert "\n" not in str(caught.value)


def test_a_file_of_names_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"none\.yaml cannot be read"):
        schema.load_columns(tmp_path / "none.yaml")


def test_columns_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Columns().reward = "other"  # type: ignore[misc]


def test_a_fault_names_file_and_row():
    faults = Faults("a.jsonl", np.array([4, 9]), "line", OnFault.REFUSE)
    with pytest.raises(ValueError, match=r"^a\.jsonl, line 9: it is blue\.$"):
        faults.find("color", np.array([False, True]), lambda row: "it is blue.")


def test_faults_are_counted_by_kind_where_they_are_dropped():
    faults = Faults("a.jsonl", np.arange(3), "line", OnFault.DROP)
    faults.find("color", np.array([False, True, True]), lambda row: "")
    faults.find("shape", np.array([False, True, False]), lambda row: "", alone=True)
    faults.find("smell", np.zeros(3, bool), lambda row: "")
    assert faults.spoiled.tolist() == [False, True, True]
    assert faults.alone.tolist() == [False, True, False]
    assert dict(faults.counts) == {"fault/color": 2, "fault/shape": 1}
