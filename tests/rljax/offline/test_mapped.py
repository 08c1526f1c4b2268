import json

import numpy as np
import pytest

from rljax.offline import dataset, mapped, sources
from rljax.offline.dataset import Episode
from rljax.types import Box, Discrete, EnvSpec, Observation

SPEC = EnvSpec("Task-v0", (2,), "float32", Discrete(3))


def make(lengths=(2, 3), spec=SPEC, **extras):
    episodes = [
        Episode(
            Observation(np.arange(2 * (steps + 1), dtype=np.float32).reshape(-1, 2)),
            np.zeros((steps, *spec.action.shape), spec.action.dtype),
            np.arange(steps, dtype=np.float32),
            True,
            {name: np.full(steps, number, np.float32) for name, number in extras.items()},
        )
        for steps in lengths
    ]
    return dataset.make(spec, episodes, "part")


@pytest.fixture
def folder(tmp_path):
    with mapped.writing(tmp_path / "rows") as append:
        append(make())
    return tmp_path / "rows"


def test_rows_stay_on_disk(folder):
    read = mapped.read(folder)
    features = read.rows.observation.features
    assert isinstance(features.base, np.memmap)
    assert not features.flags.writeable
    assert read.num_steps == 5
    assert read.source == str(folder)


def test_what_was_interrupted_leaves_nothing(tmp_path):
    def interrupted():
        with mapped.writing(tmp_path / "rows") as append:
            append(make())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (make(spec=EnvSpec("Task-v0", (2,), "float32", Box((0.0,), (1.0,)))), "something else"),
        (make(log_prob=-0.5), "before it came observation.features, action, reward"),
    ],
)
def test_a_part_of_something_else_is_told_and_nothing_is_left(tmp_path, part, words):
    def joined():
        with mapped.writing(tmp_path / "rows") as append:
            append(make())
            append(part)

    with pytest.raises(ValueError, match=words):
        joined()
    assert not list(tmp_path.iterdir())


def test_no_part_and_an_old_folder_are_told(tmp_path, folder):
    with pytest.raises(ValueError, match="there is no episode to write"):
        with mapped.writing(tmp_path / "none"):
            pass
    with pytest.raises(ValueError, match="rows exists already: choose a new folder"):
        with mapped.writing(folder):
            pass


def cut_short(folder):
    path = folder / "0.bin"
    path.write_bytes(path.read_bytes()[:-1])


def without_an_array(folder):
    (folder / "2.bin").unlink()


def of_another_version(folder):
    told = json.loads((folder / mapped.FILE).read_text())
    (folder / mapped.FILE).write_text(json.dumps({**told, "version": 2}))


def with_other_starts(folder):
    np.array([0, 3], np.int64).tofile(folder / "starts.bin")


def with_starts_out_of_order(folder):
    starts = np.fromfile(folder / "starts.bin", np.int64)
    assert len(starts) > 2
    starts[1] = starts[-1]
    starts.tofile(folder / "starts.bin")


def with_text_for_a_number(folder):
    told = json.loads((folder / mapped.FILE).read_text())
    (folder / mapped.FILE).write_text(json.dumps({**told, "episodes": "x"}))


def no_json(folder):
    (folder / mapped.FILE).write_text("{")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_short, "0.bin has 55 bytes in place of 56"),
        (without_an_array, "2.bin"),
        (of_another_version, "its version is 2, and this reader knows 1"),
        (with_other_starts, "starts.bin does not fit"),
        (with_starts_out_of_order, "starts.bin does not fit"),
        (with_text_for_a_number, "rows is damaged"),
        (no_json, "rows is damaged"),
    ],
)
def test_damage_is_told(folder, damage, words):
    damage(folder)
    with pytest.raises(ValueError, match=words) as error:
        sources.open(folder)
    assert "convert its source again" in str(error.value)


def test_another_spec_is_refused(folder):
    with pytest.raises(ValueError, match=r"something else than other: .*shape: \[2\] -> \[3\]"):
        sources.open(folder, EnvSpec("other", (3,), "float32", Discrete(3)))
    with pytest.raises(ValueError, match="num_actions: 3 -> 2"):
        sources.open(folder, EnvSpec("other", (2,), "float32", Discrete(2)))


def test_rows_are_of_any_task_that_sees_and_does_the_same(folder):
    spec = EnvSpec("other", (2,), "float32", Discrete(5), max_episode_steps=9)
    read = sources.open(folder, spec)
    assert read.spec == spec
    assert isinstance(read.rows.observation.features.base, np.memmap)


def test_parts_know_the_actions_of_all(tmp_path):
    def joined(*specs):
        with mapped.writing(tmp_path / specs[0].name) as append:
            for spec in specs:
                append(make(spec=spec))
        return mapped.read(tmp_path / specs[0].name).spec

    choices = [EnvSpec(f"day-{n}", (2,), "float32", Discrete(n)) for n in (2, 4, 3)]
    assert joined(*choices) == EnvSpec("day-2", (2,), "float32", Discrete(4))
    boxes = [
        EnvSpec(f"real-{low}", (2,), "float32", Box((low, -1.0), (0.5, high)))
        for low, high in ((-1.0, 0.0), (-2.0, 0.0), (-1.5, 3.0))
    ]
    assert joined(*boxes).action == Box((-2.0, -1.0), (0.5, 3.0))


def test_what_a_description_says_to_no_effect_is_refused(folder, tmp_path):
    for words in ("columns: {reward: x}", "rules: {sort: true}"):
        (tmp_path / "d.yaml").write_text(f"path: rows\n{words}\n")
        with pytest.raises(ValueError, match=r"names of columns are for|tells its episodes itself"):
            sources.open(tmp_path / "d.yaml")
    (tmp_path / "d.yaml").write_text("path: rows\n1: 2\n")
    with pytest.raises(ValueError, match="1 should be the name of a field, in quotes"):
        sources.open(tmp_path / "d.yaml")


def test_what_fills_the_memory_is_refused_with_what_to_do(tmp_path, monkeypatch, write_jsonl):
    path = write_jsonl([{"state": [1.0], "action": 0, "reward": 1.0, "terminated": True}])
    assert sources.open(path).num_steps == 1
    monkeypatch.setattr(sources.memory, "of_host", lambda: 10)
    with pytest.raises(ValueError, match=r"0.0 GB of memory are free: .*launch.convert --dataset="):
        sources.open(path)
