import gzip
import math

import numpy as np
import pytest

from rljax.offline import event_log, sources
from rljax.offline.schema import Columns, OnFault, Rules, Unfinished
from rljax.types import Discrete, EnvSpec

DROP = Rules(on_fault=OnFault.DROP)


def test_an_episode_without_an_end_is_refused_or_is_what_was_chosen(write_jsonl, rows_of):
    rows = rows_of("a", 3)[:2] + rows_of("b", 2)
    path = write_jsonl(rows)
    with pytest.raises(ValueError, match=r"line 2: its episode stops here, neither terminated"):
        event_log.read_jsonl(path)
    cut = event_log.read_jsonl(path, rules=Rules(unfinished=Unfinished.TRUNCATED)).dataset
    assert [(len(e.reward), e.terminated) for e in cut.episodes()] == [(1, False), (2, True)]
    ended = event_log.read_jsonl(path, rules=Rules(unfinished=Unfinished.TERMINATED)).dataset
    assert [(len(e.reward), e.terminated) for e in ended.episodes()] == [(2, True), (2, True)]
    flagged = write_jsonl(rows_of("a", 2, terminated=False), "flagged.jsonl")
    kept = event_log.read_jsonl(flagged, rules=Rules(unfinished=Unfinished.TERMINATED)).dataset
    assert not kept.episode(0).terminated  # the choice is for those without a flag alone
    dropped = event_log.read_jsonl(path, rules=DROP)
    assert dropped.dataset.num_episodes == 1
    assert dropped.counts["episodes_dropped"] == 1
    assert dropped.counts["fault/unfinished"] == 1


FAULTS = {
    "reward": ({"reward": math.nan}, "reward is nan, not a finite number"),
    "reward inf": ({"reward": math.inf}, "reward is inf"),
    "reward text": ({"reward": "1.0"}, "reward is '1.0', not a finite number"),
    "reward flag": ({"reward": True}, "reward is True"),
    "reward null": ({"reward": None}, "reward is missing"),
    "reward large": ({"reward": 1e39}, "reward is 1e[+]39"),  # float32 would make it infinite
    "reward long": ({"reward": 10**400}, "reward is 1000"),
    "state": ({"state": [0.0, math.nan]}, "holds something that is not a finite number"),
    "state flag": ({"state": [0.0, True]}, "holds something that is not a finite number"),
    "state length": ({"state": [0.0]}, r"state is \[0.0\], not a list of 2 numbers"),
    "state null": ({"state": None}, "state is missing"),
    "action text": ({"action": "1"}, "action is '1', not a whole number"),
    "action part": ({"action": 0.5}, "action is 0.5, not a whole number"),
    "action below": ({"action": -1}, "the action -1 is not from 0 to 1"),
    "action above": ({"action": 2}, "the action 2 is not from 0 to 1"),
    "propensity 0": ({"propensity": 0.0}, r"the propensity 0.0 is no probability in \(0, 1\]"),
    "propensity 2": ({"propensity": 1.5}, r"the propensity 1.5 is no probability"),
    "propensity -": ({"propensity": -0.5}, r"the propensity -0.5 is no probability"),
    "propensity null": ({"propensity": None}, "propensity is missing"),
    "id": ({"episode_id": None}, "episode_id is missing, neither text nor a whole number"),
    "step": ({"step": 1.5}, "step is 1.5, not a whole number"),
    "gap": ({"step": 5}, "step 5 comes where step 2 of its episode is due"),
    "order": ({"step": -1}, "its step -1 is before that of the row above"),
    "twice": ({"step": 0}, "has step 0 twice"),
    "flag": ({"terminated": "yes"}, "terminated is 'yes', not true or false"),
    "early end": ({"terminated": True}, "its episode ended in the row before"),
    "mask empty": ({"action_mask": []}, "action_mask is .*, not a list of 2 booleans"),
    "mask flag": ({"action_mask": [True, 2]}, "action_mask is .*, not a list of 2 booleans"),
    "state long": ({"state": [10**400, 1.0]}, "holds something that is not a finite number"),
    "state object": ({"state": {"a": 1.0, "b": 2.0}}, "state is .*, not a list of 2 numbers"),
    "time": ({"time": "1612010112345"}, "time is '1612010112345', neither seconds nor a time"),
    "version": ({"schema_version": 2}, "schema_version is 2; this reader knows 1"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_refused_with_its_line_or_its_episode_dropped(write_jsonl, name, rows_of):
    change, told = FAULTS[name]
    more = {"schema_version": 1, "action_mask": [True, True], "time": "20240131"}
    rows = rows_of("a", 3, **more) + rows_of("b", 3, start=10.0, **more)
    rows[5 if name == "gap" else 4] |= change
    path = write_jsonl(rows)
    spec = EnvSpec("task", (2,), "float32", Discrete(2))
    line = 6 if name in ("gap", "early end") else 5
    with pytest.raises(ValueError, match=rf"log\.jsonl, line {line}: .*{told}") as caught:
        event_log.read_jsonl(path, spec=spec)
    assert "\n" not in str(caught.value)
    made, counts, _ = event_log.read_jsonl(path, rules=DROP, spec=spec)
    np.testing.assert_array_equal(made.rows.observation.features[:, 0], [0, 1, 2, 2])
    # without its id the row belongs to no episode; the rest of its own then lacks a step
    assert counts["rows_dropped"] == 3
    assert counts["episodes_dropped"] == 1
    found = {kind: count for kind, count in counts.items() if kind.startswith("fault/")}
    assert found
    assert name not in ("propensity null", "propensity 0") or found == {"fault/propensity": 1}


def test_what_was_delivered_twice_is_dropped_once(write_jsonl, rows_of):
    rows = rows_of("a", 3)
    path = write_jsonl([rows[0], rows[1], rows[1], rows[2]])
    with pytest.raises(ValueError, match="line 3: its episode has step 1 twice"):
        event_log.read_jsonl(path)
    made, counts, _ = event_log.read_jsonl(path, rules=DROP)
    np.testing.assert_array_equal(made.rows.observation.features[:, 0], [0, 1, 2, 2])
    assert counts == {"rows": 4, "fault/duplicate": 1, "rows_dropped": 1}


def test_masks_that_allow_nothing_are_refused(write_jsonl, rows_of):
    path = write_jsonl(rows_of("a", 2, action_mask=[]))
    with pytest.raises(ValueError, match=r"line 1: action_mask is .*, not a list of 1 booleans"):
        event_log.read_jsonl(path)


def test_actions_must_be_allowed_by_their_mask(write_jsonl, rows_of):
    rows = rows_of("a", 2) + rows_of("b", 2, start=10.0)
    for row in rows:
        row["action_mask"] = [True, True, False]
    made = event_log.read_jsonl(write_jsonl(rows)).dataset
    assert made.spec.action == Discrete(3)
    assert made.spec.has_mask
    assert made.rows.observation.mask.shape == (6, 3)
    rows[3]["action_mask"] = [True, False, True]
    path = write_jsonl(rows)
    with pytest.raises(ValueError, match="line 4: the action 1 is not among those"):
        event_log.read_jsonl(path)
    assert event_log.read_jsonl(path, rules=DROP).dataset.num_episodes == 1
    whole = {"action_mask": [True, True, True]}
    path = write_jsonl([row | whole | {"action": float(row["action"])} for row in rows])
    assert event_log.read_jsonl(path).dataset.spec.action == Discrete(3)  # masks are of choices
    path = write_jsonl([*rows[:3], rows[3] | whole | {"action": 0.5}])
    with pytest.raises(ValueError, match=r"line 4: action is 0\.5, not a whole number"):
        event_log.read_jsonl(path)
    with pytest.raises(ValueError, match="'action_mask', and actions that are lists of reals"):
        event_log.read_jsonl(write_jsonl([row | {"action": [0.5]} for row in rows]))
    rows[3]["action_mask"] = [True, True]
    with pytest.raises(ValueError, match=r"line 4: action_mask is .*not a list of 3 booleans"):
        event_log.read_jsonl(write_jsonl(rows))


def test_a_log_without_masks_is_none_of_a_task_that_has_them(write_jsonl, rows_of):
    spec = EnvSpec("task", (2,), "float32", Discrete(2), has_mask=True)
    with pytest.raises(ValueError, match="has no column 'action_mask', and task masks actions"):
        event_log.read_jsonl(write_jsonl(rows_of("a", 2)), spec=spec)


def test_a_next_state_that_is_not_the_next_row_is_a_fault(write_jsonl, rows_of):
    rows = rows_of("a", 2)
    rows[0]["next_state"], rows[1]["next_state"] = [5.0, -1.0], []
    path = write_jsonl(rows)
    with pytest.raises(ValueError, match="line 1: its next_state is not the state of the next row"):
        event_log.read_jsonl(path)
    unread = event_log.read_jsonl(path, Columns(next_state=None)).dataset
    np.testing.assert_array_equal(unread.rows.observation.features[:, 0], [0, 1, 1])


@pytest.mark.parametrize("field", ["state", "action", "reward"])
def test_a_missing_column_is_named_with_those_there_are(write_jsonl, field, rows_of):
    rows = rows_of("a", 2)
    for row in rows:
        del row[field]
    with pytest.raises(ValueError, match=f"has no column '{field}' for {field}; its columns are"):
        event_log.read_jsonl(write_jsonl(rows), rules=DROP)  # nothing to be dropped helps


def test_a_column_that_was_given_a_name_must_be_there(write_jsonl, rows_of):
    path = write_jsonl(rows_of("a", 2))
    with pytest.raises(ValueError, match="no column 'p' for propensity"):
        event_log.read_jsonl(path, Columns(propensity="p"))


def test_a_file_cut_short_is_told(write_jsonl, rows_of):
    path = write_jsonl(rows_of("a", 2) + rows_of("b", 2), end="")
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match=r"line 4: .* is no JSON object: the file is cut short"):
        event_log.read_jsonl(path)
    made, counts, _ = event_log.read_jsonl(path, rules=DROP)
    assert made.num_episodes == 1
    assert counts["fault/no JSON object"] == 1
    assert counts["rows"] == 4
    assert counts["rows_dropped"] == 2  # the line, and the row before it, whose episode lacks it


def test_a_line_that_is_no_object_is_told(write_jsonl, rows_of):
    path = write_jsonl([*rows_of("a", 1), 3, *rows_of("b", 1)])
    with pytest.raises(ValueError, match=r"line 2: '3' is no JSON object\.$"):
        event_log.read_jsonl(path)


def test_a_name_that_is_there_twice_is_told(write_jsonl, rows_of):
    path = write_jsonl(rows_of("a", 2) + rows_of("b", 2) + rows_of("c", 2))
    lines = path.read_text().splitlines()
    lines[1] = lines[1][:-1] + ', "reward": 5.0}'
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"line 2: it has 'reward' twice\.$"):
        event_log.read_jsonl(path)
    made, counts, _ = event_log.read_jsonl(path, rules=DROP)
    assert made.num_episodes == 1
    assert counts["fault/name twice"] == 1


def test_compressed_logs_are_read_and_their_cuts_told(tmp_path, write_jsonl, rows_of):
    plain = write_jsonl(rows_of("a", 50)).read_bytes()
    path = tmp_path / "log.jsonl.gz"
    path.write_bytes(gzip.compress(plain))
    assert event_log.read_jsonl(path).dataset.num_steps == 50
    path.write_bytes(gzip.compress(plain)[:-30])
    with pytest.raises(ValueError, match="the file is cut short or damaged"):
        event_log.read_jsonl(path)


def test_a_mark_of_byte_order_and_capitals_of_a_suffix_are_no_fault(tmp_path, write_jsonl, rows_of):
    plain = write_jsonl(rows_of("a", 2)).read_bytes()
    path = tmp_path / "log.jsonl.GZ"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + plain))
    assert sources.open(path).num_steps == 2


def test_lone_states_are_told_how_they_are_named(write_jsonl, rows_of):
    path = write_jsonl([row | {"state": 1.5} for row in rows_of("a", 2)])
    with pytest.raises(ValueError, match=r"state is 1\.5, not a list of numbers; .* \{state: \[x"):
        event_log.read_jsonl(path)
    with pytest.raises(ValueError, match="state names no column"):
        Columns(state=())


def test_an_empty_or_absent_log_is_told(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no JSON object"):
        event_log.read_jsonl(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="There is no file"):
        event_log.read_jsonl(tmp_path / "none.jsonl")


def test_nothing_left_is_an_error(write_jsonl, rows_of):
    path = write_jsonl([row | {"reward": None} for row in rows_of("a", 2)])
    with pytest.raises(ValueError, match="has no episode that can be learned from"):
        event_log.read_jsonl(path, rules=DROP)


def test_a_log_of_another_task_is_told(write_jsonl, rows_of):
    spec = EnvSpec("task", (3,), "float32", Discrete(2))
    with pytest.raises(ValueError, match=r"line 1: state is .*not a list of 3 numbers"):
        event_log.read_jsonl(write_jsonl(rows_of("a", 2)), spec=spec)
