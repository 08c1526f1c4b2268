import dataclasses

import numpy as np
import pytest

from rljax.offline import schema
from rljax.offline.schema import Columns, Description, Faults, OnFault, Rules, Unfinished


def test_a_yaml_file_says_how_a_dataset_is_read(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "path: log.jsonl\ncolumns: {reward: clicks, state: [age, price], time: null}\n"
        "rules: {unfinished: truncated, session_gap: 1800}\n"
    )
    told = schema.load(tmp_path / "c.yaml")
    assert told == Description(
        "log.jsonl",
        Columns(reward="clicks", state=("age", "price"), time=None),
        Rules(unfinished=Unfinished.TRUNCATED, session_gap=1800.0),
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "path: x\ncolumns: {rewrad: clicks}\n",
            "columns.rewrad is no known field; did you mean reward",
        ),
        ("path: x\ncolumns: {reward: 3}\n", "columns.reward should be a string, got 3"),
        ("path: x\nrules: {unfinished: maybe}\n", "rules.unfinished should be"),
        ("columns: {reward: x}\n", "path is missing"),
        ("- path\n", "must hold fields"),
        ("path: [\n", "does not describe a dataset"),
        ("path: x\npath: y\n", "it has 'path' twice"),
        ("path: x\ncolumns: {reward: a, reward: b}\n", "it has 'reward' twice"),
        ("path: x\nrules: {session_gap: -1}\n", "must be a positive number of seconds"),
    ],
)
def test_a_wrong_description_is_told_in_a_sentence(tmp_path, text, told):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=told) as caught:
        schema.load(tmp_path / "c.yaml")
    assert "\n" not in str(caught.value)


def test_a_description_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"none\.yaml does not describe a dataset"):
        schema.load(tmp_path / "none.yaml")


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
