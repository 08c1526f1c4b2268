import importlib
import logging
import sys

import numpy as np
import pytest

from rljax.offline import dataset, event_log, sources, tables, writers
from rljax.offline.dataset import Episode
from rljax.offline.schema import Columns, OnFault, Rules, Unfinished
from rljax.types import Discrete, EnvSpec, Observation

SPEC = EnvSpec("task", (2,), "float32", Discrete(2))


def made():
    seen = Observation(np.arange(6, dtype=np.float32).reshape(3, 2))
    return dataset.make(SPEC, [Episode(seen, np.array([0, 1]), np.ones(2, np.float32), True)])


def test_minari_folders_and_files(tmp_path):
    pytest.importorskip("h5py", reason="needs the extra offline")
    writers.write_minari(made(), tmp_path / "a")
    for path in ("a", "a/data", "a/data/main_data.hdf5"):
        assert sources.open(tmp_path / path).num_steps == 2


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow", reason="needs the extra offline")
    writers.write_parquet(made(), tmp_path / "a.parquet")
    read = sources.open(str(tmp_path / "a.parquet"))
    assert read.spec == SPEC
    assert read.source == str(tmp_path / "a.parquet")


def test_arrays(tmp_path):
    arrays = {"observations": np.zeros((2, 1)), "actions": np.array([0, 1]), "rewards": [0.0, 1.0]}
    arrays["terminals"], arrays["timeouts"] = np.array([[False, True], [False, False]])
    np.savez(tmp_path / "a.npz", **arrays)
    (tmp_path / "b.NPZ").write_bytes((tmp_path / "a.npz").read_bytes())
    for name in ("a.npz", "b.NPZ"):
        assert sources.open(tmp_path / name).num_steps == 2
    h5py = pytest.importorskip("h5py", reason="needs the extra offline")
    for name in ("a.hdf5", "a.h5"):
        with h5py.File(tmp_path / name, "w") as file:
            for key, x in arrays.items():
                file[key] = x
        assert sources.open(tmp_path / name).num_steps == 2


def test_whole_numbers_of_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="needs the extra offline")
    pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra offline")
    rows = {"state": [[1.0], [2.0]], "action": [0, 1], "reward": [1.0, 2.0], "done": [True, True]}

    def read(**more):
        pq.write_table(pa.table(rows | more), tmp_path / "a.parquet")
        return sources.open(tmp_path / "a.parquet")

    for kind in (pa.int64(), pa.uint8()):
        made = read(action_mask=pa.array([[1, 1, 0], [0, 1, 1]], pa.list_(kind)))
        np.testing.assert_array_equal(
            made.rows.observation.mask[::2], [[True, True, False], [False, True, True]]
        )
    with pytest.raises(ValueError, match=r"row 1: action_mask is .*, not a list of 2 booleans"):
        read(action_mask=pa.array([[1, 2], [1, 1]], pa.list_(pa.int64())))
    with pytest.raises(ValueError, match="row 1: action_mask is a list of 0, not of 1"):
        read(action_mask=pa.array([[], []], pa.list_(pa.bool_())))
    for name in ("action", "step"):
        with pytest.raises(ValueError, match=f"row 2: {name} is 9223372036854775809, more than"):
            read(**{name: pa.array([0, 2**63 + 1], pa.uint64())})


def test_a_table_without_a_row_is_told_with_its_name(tmp_path):
    pytest.importorskip("pyarrow", reason="needs the extra offline")
    pq = importlib.import_module("pyarrow.parquet")
    writers.write_parquet(made(), tmp_path / "a.parquet")
    pq.write_table(pq.read_table(tmp_path / "a.parquet").slice(0, 0), tmp_path / "none.parquet")
    with pytest.raises(ValueError, match=r"none\.parquet has no row"):
        sources.open(tmp_path / "none.parquet")


def test_an_hdf5_file_with_damage_inside_is_told(tmp_path):
    """Its head is whole, so it opens; what fails is the look into it."""
    h5py = pytest.importorskip("h5py", reason="needs the extra offline")
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for name in ("observations", "actions", "rewards"):
            file[name] = np.zeros(4)
    whole = (tmp_path / "a.hdf5").read_bytes()
    (tmp_path / "a.hdf5").write_bytes(whole[:600] + bytes(400) + whole[1000:])
    with pytest.raises(ValueError, match="or is cut short"):
        sources.open(tmp_path / "a.hdf5")


def test_json_lines_by_their_keys(write_jsonl, rows_of, shared_data):
    assert sources.open(write_jsonl(rows_of("a", 2))).num_steps == 2
    assert sources.open(write_jsonl(rows_of("a", 2), "a.json")).num_steps == 2
    named = [{"user": 1, "state": [1], "action": 0, "reward": 1, "_label_cost": 1, "done": True}]
    assert sources.open(write_jsonl(named), columns=Columns(episode_id="user")).num_steps == 1
    logs = shared_data("vw_cb_logs")
    assert sources.open(logs / "dsjson_cb.json").num_steps == 23
    assert sources.open(logs / "igl_3states.dsjson").num_steps == 200
    cartpole = shared_data("reagent_event_logs") / "cartpole_training.json.bz2"
    assert sources.open(cartpole, time_limit=200).num_steps == 3925


@pytest.mark.parametrize("damaged", ['{"x', "[" * 5_000])
def test_a_damaged_first_line_does_not_hide_the_format(tmp_path, shared_data, damaged):
    whole = (shared_data("vw_cb_logs") / "dsjson_cb.json").read_text()
    path = tmp_path / "a.json"
    path.write_text(damaged + "\n" + whole)
    assert sources.open(path, rules=Rules(on_fault=OnFault.DROP)).num_steps == 23
    with pytest.raises(ValueError, match=r"a\.json, line 1: .* is no JSON object"):
        sources.open(path)


@pytest.mark.parametrize("unit", ["ns", "us", "s"])
@pytest.mark.parametrize("missing", [False, True])
def test_times_of_any_unit(tmp_path, unit, missing):
    pa = pytest.importorskip("pyarrow", reason="needs the extra offline")
    pq = pytest.importorskip("pyarrow.parquet")
    numbers = [1_700_000_000 * {"ns": 10**9, "us": 10**6, "s": 1}[unit] + 7, None]
    times = pa.array([*numbers[:1], numbers[missing]], pa.timestamp(unit, "UTC"))
    columns = {"state": [[1.0], [2.0]], "action": [0, 1], "reward": [0.0, 1.0], "done": [True] * 2}
    pq.write_table(pa.table(columns | {"time": times}), tmp_path / "a.parquet")
    drop = Rules(on_fault=OnFault.DROP)
    assert sources.open(tmp_path / "a.parquet", rules=drop).num_steps == 2 - missing


def test_the_spec_of_the_task_is_kept(write_jsonl, rows_of):
    path = write_jsonl(rows_of("a", 2))
    spec = EnvSpec("Task-v0", (2,), "float32", Discrete(3), max_episode_steps=200)
    assert sources.open(path, spec).spec == spec
    with pytest.raises(ValueError, match="not a list of 3 numbers"):
        sources.open(path, EnvSpec("other", (3,), "float32", Discrete(2)))


def test_open_bandit(shared_data):
    assert sources.open(shared_data("open_bandit") / "random" / "men").num_steps == 10_000


def test_real_arrays(shared_data):
    rules = Rules(unfinished=Unfinished.TRUNCATED)
    door = shared_data("hand_dapg_door_human") / "door_human_demos.npz"
    assert sources.open(door, rules=rules).num_episodes == 25
    cartpole = shared_data("imitation_rollouts") / "cartpole_expert.npz"
    assert sources.open(cartpole, time_limit=500).num_episodes == 57


def test_what_was_dropped_is_said(write_jsonl, rows_of, caplog):
    rows = rows_of("a", 2) + rows_of("b", 1)
    rows[2]["reward"] = None
    with caplog.at_level(logging.WARNING):
        sources.open(write_jsonl(rows), rules=Rules(OnFault.DROP))
    assert "fault/reward 1, episodes_dropped 1, rows_dropped 1" in caplog.text
    caplog.clear()
    sources.open(write_jsonl(rows_of("a", 2)))
    assert not caplog.text


def test_of_parts_it_is_said_too_and_a_bandit_is_like_itself(write_jsonl, tmp_path, caplog):
    """As `launch.convert` reads: Minari's layout in parts, dsjson with features of its own."""
    h5py = pytest.importorskip("h5py", reason="needs the extra offline")
    episodes = [*made().episodes(), *made().episodes()]
    writers.write_minari(dataset.make(SPEC, episodes), tmp_path / "minari")
    with h5py.File(tmp_path / "minari" / "data" / "main_data.hdf5", "r+") as file:
        del file["episode_0/rewards"]
    (tmp_path / "minari.yaml").write_text("{path: minari, rules: {on_fault: drop}}")
    with caplog.at_level(logging.WARNING):
        parts = list(sources.parts(tmp_path / "minari.yaml"))
    assert [part.num_episodes for part in parts] == [1]
    assert "minari.yaml, not read as it is: episodes_dropped 1" in caplog.text
    row = {"_label_cost": 0, "_label_probability": 1, "_labelIndex": 0, "c": {"_multi": [{"a": 1}]}}
    with write_jsonl([row], "log.dsjson").open("a") as file:
        file.write('{"_label_cost')
    (tmp_path / "log.yaml").write_text("{path: log.dsjson, rules: {on_fault: drop}}")
    (only,) = sources.parts(tmp_path / "log.yaml", like=tmp_path / "log.yaml")
    assert only.num_episodes == 1


@pytest.mark.parametrize("name", ["a.pkl", "a.csv", "folder"])
def test_an_unknown_format_is_told_with_the_known_ones(tmp_path, name):
    path = tmp_path / name
    path.mkdir() if name == "folder" else path.write_text("1")
    with pytest.raises(ValueError, match=r"of no known format; known are .*\.parquet") as caught:
        sources.open(path)
    assert "\n" not in str(caught.value)


def test_a_folder_of_minari_in_another_format_is_told(tmp_path):
    (tmp_path / "data" / "0").mkdir(parents=True)
    (tmp_path / "data" / "metadata.json").write_text('{"data_format": "arrow"}')
    with pytest.raises(ValueError, match=r"Minari's, but has no main_data\.hdf5: .* only hdf5"):
        sources.open(tmp_path)


def test_nothing_there_is_told(tmp_path):
    with pytest.raises(ValueError, match="There is no dataset at"):
        sources.open(tmp_path / "none.parquet")


def test_options_that_would_do_nothing_are_refused(write_jsonl, rows_of, tmp_path):
    log = write_jsonl(rows_of("a", 2))
    with pytest.raises(ValueError, match="time_limit is for flat arrays"):
        sources.open(log, time_limit=3)
    with pytest.raises(ValueError, match="clip_actions is for flat arrays"):
        sources.open(log, clip_actions=True)
    (tmp_path / "a.npz").write_bytes(b"")
    with pytest.raises(ValueError, match="time_limit must be positive, not 0"):
        sources.open(tmp_path / "a.npz", time_limit=0)
    (tmp_path / "item_context.csv").write_text("")
    with pytest.raises(ValueError, match="give no spec"):
        sources.open(tmp_path, SPEC)


@pytest.mark.parametrize(("package", "name"), [("pyarrow", "a.parquet"), ("h5py", "a.hdf5")])
def test_an_absent_package_names_the_extra(tmp_path, monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    for module in [each for each in sys.modules if each.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, module)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ImportError, match=r"pip install 'rljax\[offline\]'"):
        sources.open(tmp_path / name)


def test_readers_import_nothing_optional():
    for module in (event_log, tables, writers, sources):
        names = vars(importlib.import_module(module.__name__))
        assert (
            not {"pyarrow", "h5py", "pq", "yaml"}
            & names.keys()
            & {name for name, x in names.items() if isinstance(x, type(sys))}
        )


def test_a_description_names_columns_and_rules_of_a_file_beside_it(write_jsonl, tmp_path):
    rows = [{"episode_id": 1, "x": [1.0], "a": n % 2, "clicks": n} for n in range(3)]
    write_jsonl(rows, "log.jsonl")
    description = tmp_path / "log.yaml"
    description.write_text(
        "path: log.jsonl\ncolumns: {state: x, action: a, reward: clicks}\n"
        "rules: {unfinished: truncated}\n"
    )
    made = sources.open(description)
    np.testing.assert_array_equal(made.rows.reward[:2], [0, 1])
    assert [part.num_steps for part in sources.parts(description)] == [made.num_steps]
    with pytest.raises(ValueError, match="say nothing beside it"):
        sources.open(description, rules=Rules())
    description.write_text("path: log.yaml\n")
    with pytest.raises(ValueError, match="must name data"):
        sources.open(description)
