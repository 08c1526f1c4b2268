import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rljax.config import UsageError
from rljax.metrics import plots


def metrics_file(path, points, y="episode/return_mean"):
    lines = [{"step": step, "time": step / 10, y: value} for step, value in points]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_a_curve_leaves_out_lines_without_a_value(tmp_path):
    path = metrics_file(tmp_path / "metrics.jsonl", [(10, 1.0), (20, None), (30, 3.0)])
    with path.open("a") as file:
        file.write('{"step": 40, "time": 4.0, "loss/policy": 0.5}\n')
    xs, ys = plots.curve(path, "step", "episode/return_mean")
    np.testing.assert_array_equal(xs, [10, 30])
    np.testing.assert_array_equal(ys, [1, 3])


def test_the_mean_covers_what_all_seeds_cover():
    first = np.array([0.0, 10.0]), np.array([0.0, 10.0])  # y = x
    second = np.array([5.0, 20.0]), np.array([20.0, 20.0])
    xs, ys = plots.mean_curve([first, second], num_points=3)
    np.testing.assert_allclose(xs, [5, 7.5, 10])  # both have x from 5 to 10
    np.testing.assert_allclose(ys, [12.5, 13.75, 15])  # (x + 20) / 2


def test_the_mean_of_seeds_that_share_no_range_is_empty():
    first = np.array([0.0, 1.0]), np.array([0.0, 0.0])
    second = np.array([2.0, 3.0]), np.array([0.0, 0.0])
    assert plots.mean_curve([first, second])[0].size == 0


@pytest.mark.parametrize("x", ["step", "time"])
def test_learning_curves_of_runs_and_seeds_are_drawn(tmp_path, x):
    def points(seed):
        return [(10 * i, i + seed) for i in range(10)]

    files = [metrics_file(tmp_path / f"{seed}.jsonl", points(seed)) for seed in range(3)]
    output = tmp_path / "plots" / "learning_curve.png"
    plots.learning_curve({"ppo": files, "one seed": files[:1]}, output, x=x, title="Toy")
    with Image.open(output) as image:
        assert image.format == "PNG"
        assert image.width > 600
        colors = {color for _, color in image.convert("RGB").getcolors(2**24)}
    assert {(31, 119, 180), (255, 127, 14)} <= colors  # a blue line and an orange one


def test_a_metric_that_was_never_measured_is_named_beside_those_that_were(tmp_path):
    path = metrics_file(tmp_path / "metrics.jsonl", [(1, 1.0)], y="loss/policy")
    with pytest.raises(UsageError, match=r"'episode/return_mean': it has loss/policy, step, time"):
        plots.learning_curve({"ppo": [path]}, tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.jsonl has no line .* empty or missing"):
        plots.learning_curve({"ppo": [tmp_path / "gone.jsonl"]}, tmp_path / "curve.png")


def test_a_plot_that_cannot_be_drawn_leaves_the_one_before(tmp_path):
    class Broken(Figure):
        def savefig(self, fname, **_):
            fname.write_bytes(b"half")
            raise OSError("the disk is full")

    output = tmp_path / "plots" / "curve.png"
    plots.learning_curve({"a": [metrics_file(tmp_path / "m", [(1, 1.0), (2, 2.0)])]}, output)
    before = output.read_bytes()
    with pytest.raises(OSError, match="full"):
        plots.save(Broken(), output)
    assert [path.name for path in output.parent.iterdir()] == ["curve.png"]
    assert output.read_bytes() == before
