import os
import signal
import subprocess
import sys

import pytest

from rljax import files


def test_a_file_is_replaced_when_the_block_ends_well(tmp_path):
    path = tmp_path / "a.json"
    for text in ("first", "zweite, größer"):
        files.write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert os.listdir(tmp_path) == ["a.json"]


def test_while_it_is_written_the_old_one_is_there(tmp_path):
    path = tmp_path / "a.json"
    files.write_text(path, "old")
    with files.replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
def test_where_the_block_fails_all_is_as_it_was(tmp_path, error):
    path = tmp_path / "a.json"
    files.write_text(path, "old")

    def fail():
        with files.replacing(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_where_nothing_was_written_nothing_is_replaced(tmp_path):
    path = tmp_path / "a.json"
    files.write_text(path, "old")
    with pytest.raises(FileNotFoundError), files.replacing(path):
        pass
    assert path.read_text() == "old"


def test_a_kill_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.json"
    files.write_text(path, "old")
    code = (
        "import os, pathlib, signal\nfrom rljax import files\n"
        f"with files.replacing(pathlib.Path({str(path)!r})) as partial:\n"
        "    partial.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_a_folder_is_there_when_the_block_ends_well(tmp_path):
    folder = tmp_path / "a" / "data"
    with files.new_folder(folder) as partial:
        (partial / "rows").write_text("1")
        assert not folder.exists()
    assert (folder / "rows").read_text() == "1"
    assert list(folder.parent.iterdir()) == [folder]
    with pytest.raises(ValueError, match="data exists already"), files.new_folder(folder):
        pass


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_where_the_block_fails_no_folder_is_left(tmp_path, error):
    def fail():
        with files.new_folder(tmp_path / "data") as partial:
            (partial / "rows").write_text("1")
            raise error

    with pytest.raises(error):
        fail()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_of_a_folder_is_cleared(tmp_path):
    left = tmp_path / ".data.partial"
    (left / "old").mkdir(parents=True)
    (left / "rows").write_text("half")
    with files.new_folder(tmp_path / "data") as partial:
        assert not list(partial.iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_of_two_that_fill_a_folder_the_second_is_refused(tmp_path):
    folder = tmp_path / "data"
    with files.new_folder(folder) as partial:
        (partial / "rows").write_text("1")
        with pytest.raises(ValueError, match="process is writing"), files.new_folder(folder):
            pass
        folder.mkdir()  # by something that does not ask
        (folder / "theirs").write_text("2")
        with pytest.raises(ValueError, match="exists already"), files.new_folder(folder):
            pass
        (folder / "theirs").unlink()
        folder.rmdir()
    assert [path.name for path in folder.iterdir()] == ["rows"]


def test_a_folder_that_appeared_meanwhile_stays_as_it_is(tmp_path):
    folder = tmp_path / "data"
    with pytest.raises(ValueError, match="exists already"), files.new_folder(folder):
        folder.mkdir()
    assert list(tmp_path.iterdir()) == [folder]
