"""Polling, swapping and letting go, with a loader that does nothing; then loading for real."""

import hashlib
import json
import logging
import shutil

import numpy as np
import pytest

from serving import runtime
from serving.status import Code, ServingError
from serving.versions import State, Versions, VersionStatus
from tests.serving.servers import SIZES, half_plus_two, policy, write_version


class Loaded:
    """A servable that knows where it came from."""

    def __init__(self, path):
        self.name = path.name


def load(path):
    if (path / "broken").exists():
        raise ServingError(Code.DATA_LOSS, "broken")
    return Loaded(path)


@pytest.fixture
def versions(tmp_path):
    return Versions("m", tmp_path, load)


def make(base, *names):
    for name in names:
        (base / name).mkdir()


def states(versions):
    return {status.version: status.state for status in versions.statuses()}


def test_serves_the_largest_number(tmp_path, versions):
    make(tmp_path, "3", "20", "00000004", "-5", "5.0", "tmp", "²", ".tmp-21", str(2**63))
    (tmp_path / "99").touch()  # no directory
    versions.poll()
    version, loaded = versions.get()
    assert (version, loaded.name) == (20, "20")
    assert versions.statuses() == [VersionStatus(20, State.AVAILABLE)]


def test_leading_zeros_are_the_same_number(tmp_path, versions):
    make(tmp_path, "00000123")
    versions.poll()
    assert versions.get(123)[0] == 123


def test_nothing_there_is_not_found(versions, caplog):
    with caplog.at_level(logging.WARNING):
        versions.poll()
        versions.poll()
    assert len(caplog.records) == 1  # said once, not every second
    assert "Did you forget to name your leaf directory as a number" in caplog.text
    assert not versions.available()
    with pytest.raises(ServingError, match=r"^NOT_FOUND: .* Latest\(m\)$"):
        versions.get()


def test_a_new_version_is_loaded_before_the_old_one_goes(tmp_path, versions):
    make(tmp_path, "1")
    versions.poll()
    seen = []
    versions._load = lambda path: seen.append(versions.get()[0]) or Loaded(path)
    make(tmp_path, "2")
    versions.poll()
    assert seen == [1]  # it was still there while 2 was loading
    assert versions.get()[0] == 2
    with pytest.raises(ServingError, match=r"Specific\(m, 1\)"):
        versions.get(1)


def test_requests_in_flight_keep_the_old_version(tmp_path, versions):
    make(tmp_path, "1")
    versions.poll()
    _, held = versions.get()
    make(tmp_path, "2")
    versions.poll()
    assert states(versions) == {1: State.UNLOADING, 2: State.AVAILABLE}
    assert held.name == "1"
    del held
    assert states(versions) == {1: State.END, 2: State.AVAILABLE}


def test_a_broken_version_leaves_the_old_one_serving(tmp_path, versions):
    make(tmp_path, "1")
    versions.poll()
    make(tmp_path, "2", "2/broken")
    versions.poll()
    assert versions.get()[0] == 1
    assert versions.statuses() == [
        VersionStatus(2, State.END, Code.DATA_LOSS, "broken"),
        VersionStatus(1, State.AVAILABLE),
    ]


def test_a_start_with_a_broken_newest_serves_the_next(tmp_path, versions):
    make(tmp_path, "1", "2", "2/broken")
    versions.poll()
    assert states(versions) == {2: State.END, 1: State.AVAILABLE}


def test_a_broken_version_is_tried_again_only_when_it_changes(tmp_path, versions):
    attempts = []

    def count(path):
        attempts.append(path.name)
        return load(path)

    versions._load = count
    make(tmp_path, "2", "2/broken")
    versions.poll()
    versions.poll()
    assert attempts == ["2"]
    (tmp_path / "2" / "broken").rmdir()
    versions.poll()
    assert attempts == ["2", "2"]
    assert states(versions) == {2: State.AVAILABLE}


def test_a_deleted_newest_rolls_back(tmp_path, versions):
    make(tmp_path, "1", "2")
    versions.poll()
    (tmp_path / "2").rmdir()
    versions.poll()
    assert versions.get()[0] == 1
    assert states(versions) == {1: State.AVAILABLE, 2: State.END}
    make(tmp_path, "2")  # and may come back
    versions.poll()
    assert states(versions) == {1: State.END, 2: State.AVAILABLE}


def test_the_last_version_is_never_let_go(tmp_path, versions):
    make(tmp_path, "1")
    versions.poll()
    shutil.rmtree(tmp_path)
    versions.poll()
    assert versions.get()[0] == 1
    make(tmp_path.parent, tmp_path.name)  # there again, and empty
    versions.poll()
    assert versions.get()[0] == 1


def test_runs_half_plus_two_in_every_batch_size(tmp_path):
    write_version(tmp_path, 1, half_plus_two())
    servable = runtime.load(tmp_path / "1")
    assert servable.max_batch_size == SIZES[-1] == 8
    for rows in range(1, 20):  # 19 = 8 + 8 + 3, the 3 padded to 4
        x = np.arange(rows, dtype=np.float32)
        outputs = servable.run("serving_default", {"x": x})
        np.testing.assert_array_equal(outputs["y"], x / 2 + 2)


def test_padding_changes_no_row(tmp_path):
    write_version(tmp_path, 1, policy())
    servable, inputs = runtime.load(tmp_path / "1"), policy().inputs
    whole = servable.run("serving_default", inputs)  # 5 rows, padded to 8
    for row in range(5):
        alone = servable.run("serving_default", {k: x[row : row + 1] for k, x in inputs.items()})
        for name, output in alone.items():
            np.testing.assert_allclose(output[0], whole[name][row], rtol=1e-5, atol=1e-6)


def manifest_of(base):
    return base / "1" / "assets.extra" / "rljax" / "manifest.json"


def edit(base, change):
    document = json.loads(manifest_of(base).read_text())
    change(document)
    manifest_of(base).write_text(json.dumps(document))


def test_refuses_outputs_that_are_not_golden(tmp_path):
    model = half_plus_two()
    write_version(tmp_path, 1, model)
    write_version(tmp_path, 2, half_plus_two(offset=2.01))
    ours, theirs = (tmp_path / v / "assets.extra" / "rljax" / "params.npz" for v in "12")
    shutil.copy(theirs, ours)
    digest = json.loads((theirs.parent / "manifest.json").read_text())["sha256"]
    key = "assets.extra/rljax/params.npz"
    edit(tmp_path, lambda d: d["sha256"].update({key: digest[key]}))
    with pytest.raises(ServingError, match=r"golden serving_default/output/y .* off by 0.01,") as e:
        runtime.load(tmp_path / "1")
    assert e.value.code is Code.DATA_LOSS


@pytest.mark.parametrize("name", ["params.npz", "serving_default.jaxexport", "golden.npz"])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_refuses_damaged_files(tmp_path, name, damage):
    write_version(tmp_path, 1, half_plus_two())
    path = tmp_path / "1" / "assets.extra" / "rljax" / name
    if damage == "missing":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(ServingError, match=name) as error:
        runtime.load(tmp_path / "1")
    assert error.value.code is Code.DATA_LOSS


@pytest.mark.parametrize("name", ["params.npz", "serving_default.jaxexport", "golden.npz"])
@pytest.mark.parametrize("content", [b"", b"no such thing", bytes(1000)])
def test_refuses_nonsense_with_the_right_hash(tmp_path, name, content):
    write_version(tmp_path, 1, half_plus_two())
    (manifest_of(tmp_path).parent / name).write_bytes(content)
    key, digest = f"assets.extra/rljax/{name}", hashlib.sha256(content).hexdigest()
    edit(tmp_path, lambda d: d["sha256"].update({key: digest}))
    with pytest.raises(ServingError, match=name):
        runtime.load(tmp_path / "1")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d.update(format_version=2), "reads rljax-policy 1"),
        (lambda d: d.pop("signatures"), "KeyError: 'signatures'"),
        (lambda d: d.update(allowed_batch_sizes=[0]), "batch size below 1"),
        (lambda d: d.update(allowed_batch_sizes=[]), "batch size below 1"),
        (lambda d: d.update(signatures={}), "names no signature"),
        (lambda d: d.update(expires="soon"), "is broken: ValueError"),
        (
            lambda d: d["signatures"]["serving_default"]["inputs"]["x"].update(shape=[3]),
            "x of serving_default has shape [3]",
        ),
        (
            lambda d: d["signatures"]["serving_default"]["inputs"]["x"].update(dtype="float16"),
            "does not compile here",
        ),
        (
            lambda d: d["signatures"]["serving_default"]["outputs"].update(
                z={"dtype": "float32", "shape": [-1]}
            ),
            "golden.npz has no array",
        ),
        (lambda d: d["params"].update(leaves=[]), "params.npz does not hold the arrays"),
    ],
)
def test_refuses_broken_manifests(tmp_path, change, text):
    write_version(tmp_path, 1, half_plus_two())
    edit(tmp_path, change)
    with pytest.raises(ServingError) as error:
        runtime.load(tmp_path / "1")
    assert text in error.value.message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null"])
def test_refuses_manifests_that_are_none(tmp_path, content):
    write_version(tmp_path, 1, half_plus_two())
    manifest_of(tmp_path).write_bytes(content)
    with pytest.raises(ServingError, match=r"manifest\.json") as error:
        runtime.load(tmp_path / "1")
    assert error.value.code is Code.FAILED_PRECONDITION


def test_warns_of_an_export_that_is_about_to_expire(tmp_path, caplog):
    write_version(tmp_path, 1, half_plus_two(), expires="2020-01-01")
    with caplog.at_level(logging.WARNING):
        runtime.load(tmp_path / "1")
    assert "export it again" in caplog.text
    caplog.clear()
    write_version(tmp_path, 2, half_plus_two())
    with caplog.at_level(logging.WARNING):
        runtime.load(tmp_path / "2")
    assert not caplog.text
