"""Where the shared data lie, and small files."""

import json
import os
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture
def shared_data():
    """`shared_data("open_bandit")` is a folder that nobody here wrote, or a reason to skip."""
    root = pathlib.Path(os.environ.get("RLJAX_DATA", ROOT.parent / "shared" / "data"))

    def folder(name):
        if not (root / name).is_dir():
            pytest.skip(f"the shared data {name} are absent: RLJAX_DATA names their folder")
        return root / name

    return folder


@pytest.fixture
def write_jsonl(tmp_path):
    """Writes objects one a line; returns the path."""

    def write(rows, name="log.jsonl", end="\n"):
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(row) for row in rows) + end)
        return path

    return write


@pytest.fixture
def rows_of():
    """Rows of an event log: `rows_of("a", 3)` are an episode of three steps."""

    def rows_of(episode, steps, *, terminated=True, start=0.0, **more):
        """Rows of an episode whose states are [start + step, -1]."""
        return [
            {
                "episode_id": episode,
                "step": step,
                "state": [start + step, -1.0],
                "action": step % 2,
                "reward": start + step + 0.5,
                "propensity": 0.25,
                "terminated": terminated and step == steps - 1,
                "truncated": not terminated and step == steps - 1,
                **more,
            }
            for step in range(steps)
        ]

    return rows_of
