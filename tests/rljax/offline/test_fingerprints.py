"""The hash of a dataset: read once, kept beside rows on disk, and never another's."""

import dataclasses
import json
import os

import numpy as np
import pytest

from rljax.offline import dataset, fingerprints, mapped
from rljax.offline.dataset import Dataset, Episode
from rljax.types import Discrete, EnvSpec, Observation

SPEC = EnvSpec("Task-v0", (2,), "float32", Discrete(3))


def make() -> Dataset:
    seen = Observation(np.arange(8, dtype=np.float32).reshape(4, 2))
    episode = Episode(seen, np.zeros(3, np.int32), np.arange(3, dtype=np.float32), True)
    return dataset.make(SPEC, [episode] * 2, "made")


@pytest.fixture
def reads(monkeypatch):
    """Counts the times that rows are read for a hash."""
    found, real = [], dataset.hashlib.sha256

    def sha256(*data):
        if not data:  # of rows; episodes' starts are given at once
            found.append(1)
        return real(*data)

    monkeypatch.setattr(dataset.hashlib, "sha256", sha256)
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Rows on disk that count as settled."""
    monkeypatch.setattr(fingerprints, "_SETTLED", -60.0)
    with mapped.writing(tmp_path / "rows") as append:
        append(make())
    return tmp_path / "rows"


def test_it_is_of_all_that_is_learned_from(reads):
    data = make()
    assert fingerprints.of(data) == fingerprints.of(make())
    assert fingerprints.of(data) == data.sha256
    assert len(reads) == 2  # once each
    others = [
        data.rows._replace(reward=data.rows.reward + 1),
        data.rows._replace(valid=~data.rows.valid),
    ]
    changed = [dataclasses.replace(data, rows=rows) for rows in others]
    changed.append(dataclasses.replace(data, starts=np.array([0, 8])))
    assert len({fingerprints.of(x) for x in (data, *changed)}) == 4


def test_rows_on_disk_are_read_for_it_once_and_it_is_that_of_the_same_rows_in_memory(folder, reads):
    expected = fingerprints.of(make())
    reads.clear()
    assert fingerprints.of(mapped.read(folder)) == expected
    assert fingerprints.of(mapped.read(folder)) == expected
    assert len(reads) == 1
    other = dataclasses.replace(mapped.read(folder), spec=dataclasses.replace(SPEC, name="other"))
    assert fingerprints.of(other) == expected  # of the same rows
    assert len(reads) == 1


def same_size_and_time(folder):
    """The worst case: other rows of the same size, and somebody set the time back."""
    path = folder / "2.bin"
    before = path.stat()
    rewards = np.fromfile(path, np.float32)
    (rewards + 1).tofile(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def other_starts(folder):
    np.array([0, 2, 8], np.int64).tofile(folder / "starts.bin")


@pytest.mark.parametrize("change", [same_size_and_time, other_starts])
def test_what_has_changed_is_read_again(folder, change):
    before = fingerprints.of(mapped.read(folder))
    change(folder)
    read = mapped.read(folder)
    assert fingerprints.of(read) == read.sha256 != before


@pytest.mark.parametrize("text", ["{", "[]", '{"sha256": 5}', '{"sha256": "00"}'])
def test_what_is_kept_and_cannot_be_right_is_not_believed(folder, text):
    expected = fingerprints.of(mapped.read(folder))
    (folder / fingerprints.FILE).write_text(text)
    assert fingerprints.of(mapped.read(folder)) == expected
    assert json.loads((folder / fingerprints.FILE).read_text())["sha256"] == expected


def test_nothing_is_kept_of_what_changed_a_moment_ago_or_cannot_be_written(
    folder, monkeypatch, reads
):
    monkeypatch.setattr(fingerprints, "_SETTLED", 60.0)
    fingerprints.of(mapped.read(folder))
    assert not (folder / fingerprints.FILE).exists()
    monkeypatch.setattr(fingerprints, "_SETTLED", -60.0)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fingerprints.pathlib.Path, "write_text", full)
    fingerprints.of(mapped.read(folder))
    assert {x.name for x in folder.iterdir() if "sha256" in x.name} == set()
    assert len(reads) == 2


def test_of_other_rows_than_the_files_have_nothing_is_kept(folder):
    read = mapped.read(folder)
    backwards = read.rows._replace(reward=read.rows.reward[::-1])
    for other in (read.select([1]), dataclasses.replace(read, rows=backwards)):
        assert fingerprints.of(other) == other.sha256
        assert not (folder / fingerprints.FILE).exists()
    whole = fingerprints.of(read)
    swapped = read.rows._replace(reward=read.rows.discount, discount=read.rows.reward)
    assert fingerprints.of(dataclasses.replace(read, rows=swapped)) != whole
