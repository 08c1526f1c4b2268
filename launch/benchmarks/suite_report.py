"""The reports of a suite: tables and plots as a Markdown page and as one self-contained HTML file.

    python -m launch.benchmarks.suite_report results.json

makes them anew from what `launch.benchmark suite` wrote.
"""

import base64
import html
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from launch.benchmarks import table
from launch.benchmarks.table import Row
from rljax import files, reliability
from rljax.config import UsageError
from rljax.metrics import plots

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .2rem .8rem; text-align: left }
td + td { text-align: right } tr { border-bottom: 1px solid #ddd } img { max-width: 100% }
"""


def write(
    report: Mapping[str, Any], output: pathlib.Path, runs: pathlib.Path
) -> list[pathlib.Path]:
    """Writes `output` with .md and .html for its suffix, and plots in a folder of its name.

    `runs` holds task/agent/seed/metrics.jsonl, from which learning curves are drawn. Returns the
    two pages.
    """
    rows = table.from_json(dict(report))
    folder = output.with_suffix("").with_name(f"{output.stem}_plots")
    folder.mkdir(parents=True, exist_ok=True)
    figures = list(_figures(rows, folder, runs))
    sections = list(_sections(rows))
    notes = _notes(report)

    page = [f"# Suite of {report['date'][:10]}", "", *notes, ""]
    for heading, lines in sections:
        page += [f"## {heading}", "", *_markdown(lines), ""]
    for caption, path in figures:
        page += [f"## {caption}", "", f"![{caption}]({folder.name}/{path.name})", ""]
    markdown = output.with_suffix(".md")
    files.write_text(markdown, "\n".join(page))

    body = [f"<h1>Suite of {report['date'][:10]}</h1>"]
    body += [f"<p>{html.escape(note)}</p>" for note in notes]
    for heading, lines in sections:
        body += [f"<h2>{html.escape(heading)}</h2>", _html(lines)]
    for caption, path in figures:
        data = base64.b64encode(path.read_bytes()).decode()
        image = f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
        body += [f"<h2>{html.escape(caption)}</h2>", image]
    web = output.with_suffix(".html")
    head = f"<meta charset='utf-8'><title>Suite</title><style>{_STYLE}</style>"
    files.write_text(
        web, f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(body)}</body>"
    )
    return [markdown, web]


def _notes(report: Mapping[str, Any]) -> list[str]:
    machine = report["machine"]
    where = f"{machine['cores']} cores, {machine['cpu']}, {machine['memory_gb']} GB"
    devices = ", ".join(machine["devices"])
    return [
        f"Command: `{report['command']}`.",
        f"Machine: {where}; devices: {devices}; load before: {machine['load_average']:.1f}.",
        "Returns are of greedy episodes on fresh environments, of sampled ones for the random "
        "agent; ± is half of a 95 % bootstrap interval over the trials.",
        "Normalized: 0 is the random agent, 1 the published score, or the best agent's here.",
    ]


def _sections(rows: Sequence[Row]) -> Iterator[tuple[str, list[list[str]]]]:
    """Heading and table, its first line the header."""
    scores = [row for row in rows if row.name.startswith("score/")]
    names = list(dict.fromkeys(row.name for row in scores))
    tasks = list(dict.fromkeys((r.settings["env"], r.settings["steps"]) for r in rows
                               if "env" in r.settings))  # fmt: skip
    lines = [["task", "steps", *(_after(name) for name in names)]]
    for task, steps in tasks:
        found = {row.name: row for row in scores if row.settings["env"] == task}
        lines.append([task, f"{steps:,}", *(_score(found.get(name)) for name in names)])
    yield "Returns", lines
    over_all = [row for row in rows if row.name.startswith("iqm/")]
    if over_all:
        lines = [["agent", "IQM", "95 % interval"]]
        lines += [[_after(r.name), f"{r.value:.3f}", _interval(r)] for r in over_all]
        yield f"Interquartile mean of normalized scores over {over_all[0].settings['tasks']}", lines
    pairs = [row for row in rows if row.name.startswith("improvement/")]
    if pairs:
        lines = [["pair", "probability", "95 % interval"]]
        lines += [[_pair(r), f"{r.value:.2f}", _interval(r)] for r in pairs]
        yield "Probability of improvement", lines
    failures = [row for row in rows if row.name.startswith("failed/")]
    if failures:
        lines = [["task", "agent", "why"]]
        yield "Failed", lines + [[r.settings["env"], _after(r.name), r.unit] for r in failures]


def _figures(
    rows: Sequence[Row], folder: pathlib.Path, runs: pathlib.Path
) -> Iterator[tuple[str, pathlib.Path]]:
    """Caption and file of every plot."""
    over_all = [row for row in rows if row.name.startswith("iqm/")]
    if over_all:
        yield "Interquartile means", _points(over_all, folder / "iqm.png", "normalized IQM")
        yield "Performance profiles", _profiles(over_all, folder / "profiles.png")
    pairs = [row for row in rows if row.name.startswith("improvement/")]
    if pairs:
        path = folder / "improvement.png"
        yield "Probability of improvement", _points(pairs, path, "P(improvement)", middle=0.5)
    for task in dict.fromkeys(r.settings["env"] for r in rows if "env" in r.settings):
        where = runs / task.replace(":", "-")
        agents = [_after(r.name) for r in rows if r.name.startswith("score/")
                  and r.settings["env"] == task]  # fmt: skip
        curves = {agent: sorted(where.glob(f"{agent}/*/metrics.jsonl")) for agent in agents}
        curves = {agent: paths for agent, paths in curves.items() if paths}
        path = folder / f"{where.name}.png"
        try:
            plots.learning_curve(curves, path, title=task)
        except UsageError:  # a run too short for an episode to end
            continue
        if curves:
            yield f"Learning curves, {task}", path


def _points(
    rows: Sequence[Row], path: pathlib.Path, label: str, middle: float | None = None
) -> pathlib.Path:
    figure = Figure(figsize=(6.4, 0.9 + 0.32 * len(rows)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    names = [_pair(row) if "_over_" in row.name else _after(row.name) for row in rows]
    for height, row in enumerate(rows):
        assert row.interval is not None
        axes.plot(row.interval, [height, height], color="C0", linewidth=4, alpha=0.4)
        axes.plot(row.value, height, "o", color="C0")
    if middle is not None:
        axes.axvline(middle, color="gray", linewidth=0.8)
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")
    return path


def _profiles(rows: Sequence[Row], path: pathlib.Path) -> pathlib.Path:
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    top = max(1.05, *(max(row.samples) for row in rows))
    thresholds = np.linspace(min(0.0, *(min(row.samples) for row in rows)), top, 201)
    for index, row in enumerate(rows):
        tasks = len(row.settings["tasks"].split(", "))
        scores = np.array(row.samples).reshape(-1, tasks)

        def profile(drawn: np.ndarray) -> np.ndarray:
            return reliability.performance_profile(drawn, thresholds)

        low, high = reliability.interval(profile, scores)
        axes.plot(thresholds, profile(scores), color=f"C{index}", label=_after(row.name))
        axes.fill_between(thresholds, low, high, color=f"C{index}", alpha=0.2, linewidth=0)
    axes.set_xlabel("normalized score τ")
    axes.set_ylabel("fraction of runs above τ")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, format="png")
    return path


def _after(name: str) -> str:
    return name.partition("/")[2]


def _pair(row: Row) -> str:
    return _after(row.name).replace("_over_", " over ")


def _interval(row: Row) -> str:
    return f"[{row.interval[0]:.3f}, {row.interval[1]:.3f}]" if row.interval else ""


def _score(row: Row | None) -> str:
    if row is None:
        return "—"
    spread = f" ± {(row.interval[1] - row.interval[0]) / 2:,.1f}" if row.interval else ""
    return f"{row.value:,.1f}{spread}"


def _markdown(lines: Sequence[Sequence[str]]) -> list[str]:
    header, *others = lines
    rule = ["---"] * len(header)
    return [f"| {' | '.join(line)} |" for line in (header, rule, *others)]


def _html(lines: Sequence[Sequence[str]]) -> str:
    header, *others = lines

    def line(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    return f"<table>{line(header, 'th')}{''.join(line(cells, 'td') for cells in others)}</table>"


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the reports of a results file anew; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if len(arguments) != 1 or not pathlib.Path(arguments[0]).is_file():
        print("error: one argument is needed: the file that the suite wrote.", file=sys.stderr)
        return 2
    output = pathlib.Path(arguments[0])
    try:
        for path in write(json.loads(output.read_text()), output, pathlib.Path("runs/suite")):
            print(path)
    except (UsageError, json.JSONDecodeError) as error:
        print(f"error: {output}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
