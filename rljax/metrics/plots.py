"""Learning curves from `metrics.jsonl` files: a thin line per seed, a thick one for their mean."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rljax import files
from rljax.config import UsageError
from rljax.metrics import jsonl

_LABELS = {
    "step": "environment steps",
    "time": "time [s]",
    "episode/return_mean": "episode return",
    "eval/return_mean": "evaluation return",
    "time/steps_per_second": "steps per second",
}


def learning_curve(
    runs: Mapping[str, Sequence[pathlib.Path]],
    output: pathlib.Path,
    *,
    x: str = "step",
    y: str = "episode/return_mean",
    title: str = "",
) -> None:
    """Draws one metric of one run or more into a PNG.

    Args:
      runs: label -> the metrics files of its seeds.
      output: the PNG; its folder is made if missing.
      x: "step" or "time", the columns that every line has, or a metric.
      y: a metric.
      title: above the axes, if not empty.

    Raises:
      UsageError: if a file has no line with both `x` and `y`.
    """
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")  # no pyplot: no global state
    axes = figure.add_subplot()
    for index, (label, paths) in enumerate(runs.items()):
        _draw(axes, [curve(path, x, y) for path in paths], label, f"C{index}")
    _dress(axes, x, y)
    if title:
        axes.set_title(title)
    if len(runs) > 1 or any(len(paths) > 1 for paths in runs.values()):
        axes.legend(frameon=False)
    save(figure, output)


def panels(
    runs: Mapping[str, Sequence[pathlib.Path]],
    output: pathlib.Path,
    *,
    x: str = "step",
    y: str = "episode/return_mean",
) -> None:
    """Draws runs side by side, an axis each under its label; arguments as `learning_curve`'s."""
    figure = Figure(figsize=(3.2 * len(runs), 2.6), dpi=150, layout="constrained")
    for index, (label, paths) in enumerate(runs.items()):
        axes = figure.add_subplot(1, len(runs), index + 1)
        _draw(axes, [curve(path, x, y) for path in paths], label, f"C{index}")
        _dress(axes, x, y if index == 0 else "")
        axes.set_title(label, fontsize="medium")
    save(figure, output)


def save(figure: Figure, output: pathlib.Path) -> None:
    """A PNG, whole or not at all; its folder is made if missing."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(output) as partial:
        figure.savefig(partial, format="png")


def curve(path: pathlib.Path, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """The points `[N]`, `[N]` of a metrics file in order of `x`, from the lines that have both.

    Raises:
      UsageError: if no line has both.
    """
    lines = jsonl.read(path)
    points = [(a, b) for line in lines if None not in (a := line.get(x), b := line.get(y))]
    if not points:
        names = sorted({name for line in lines for name in line})
        known = f"it has {', '.join(names)}" if names else "it is empty or missing"
        raise UsageError(f"{path} has no line with both {x!r} and {y!r}: {known}.")
    xs, ys = np.array(sorted(points), dtype=float).T
    return xs, ys


def mean_curve(
    curves: Sequence[tuple[np.ndarray, np.ndarray]], num_points: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """The mean of several curves `[N_i]`, interpolated, over the range of x that all of them cover.

    Curves that share no such range give two empty arrays.
    """
    low, high = max(xs[0] for xs, _ in curves), min(xs[-1] for xs, _ in curves)
    grid = np.linspace(low, high, num_points if low < high else 0)
    return grid, np.mean([np.interp(grid, xs, ys) for xs, ys in curves], axis=0)


def _dress(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(_LABELS.get(x, x))
    axes.set_ylabel(_LABELS.get(y, y))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 200k, 1M
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0)


def _draw(
    axes: Axes, curves: Sequence[tuple[np.ndarray, np.ndarray]], label: str, color: str
) -> None:
    if len(curves) == 1:
        axes.plot(*curves[0], color=color, linewidth=1.5, label=label)
        return
    for xs, ys in curves:
        axes.plot(xs, ys, color=color, linewidth=0.8, alpha=0.4)
    label = f"{label}: mean of {len(curves)} seeds"
    axes.plot(*mean_curve(curves), color=color, linewidth=2.2, label=label)
