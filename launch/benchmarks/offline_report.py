"""What an offline benchmark leaves: a Markdown page, and `best.json`, which names the run to take.

    python -m launch.benchmarks.offline_report results.json

makes them anew from what `launch.benchmark offline` wrote.
"""

import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launch.benchmarks import table
from launch.benchmarks.offline_choice import BASELINE, FEWEST_SEEDS, Choice, Result, choose
from launch.benchmarks.table import Row
from rljax import files
from rljax.config import UsageError

BEST = "best.json"
_HOW = (
    "The interval decides: an agent counts as better than behavior cloning (bc) only if the "
    "interval of the difference of means excludes 0. It is a bootstrap over the seeds, widened "
    "for small samples and for the number of agents, so that 95 % holds for all comparisons with "
    f"bc at once; with fewer than {FEWEST_SEEDS} seeds nothing is told from luck."
)
_BY_LOG = (
    "Nothing was played: values are estimates from the log, discounted, of policies whose actions "
    "are sampled, and the intervals also hold what the log leaves open."
)


def write(report: Mapping[str, Any], output: pathlib.Path, runs: pathlib.Path) -> list[str]:
    """Writes `output` with .md for its suffix and `best.json` beside the runs.

    Returns lines to print: which agent to take, and where its run is. An older `best.json` goes
    where no agent can be named.
    """
    rows = table.from_json(dict(report))
    if not rows:
        raise UsageError("it holds no row, so that there is nothing to report.")
    results, played = results_of(rows)
    choice = choose(results)
    folder = runs / pathlib.Path(str(rows[0].settings["dataset"])).resolve().name
    best = folder / BEST
    lines = [choice.sentence]
    if choice.kept is None:
        best.unlink(missing_ok=True)
    else:
        told = naming(choice, results[choice.kept], folder, played) | {
            "dataset": rows[0].settings["dataset"],
            "env": rows[0].settings["env"],
        }
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(best, json.dumps(told, indent=2) + "\n")
        lines.append(f"{told['workdir']} is the run to take; {best} names it.")
    page = output.with_suffix(".md")
    files.write_text(page, "\n".join(_page(report, rows, lines, played)))
    return [*lines, f"report: {page}"]


def results_of(rows: Sequence[Row]) -> tuple[dict[str, Result], bool]:
    """What is compared, and whether it was played: scores, else values by OPE."""
    played = {_after(r.name): Result(r.samples) for r in rows if r.name.startswith("score/")}
    if played:
        return played, True
    by_log = [row for row in rows if row.name.startswith("ope/")]
    return {
        _after(row.name): Result(row.samples, row.interval, _trust(row).partition(":")[0])
        for row in by_log
    }, False


def naming(choice: Choice, result: Result, folder: pathlib.Path, played: bool) -> dict[str, Any]:
    """The run of the agent that is kept with the highest value, as JSON."""
    seed = max(range(len(result.values)), key=lambda seed: result.values[seed])
    return {
        "workdir": str(folder / f"{choice.kept}-{seed}"),
        "agent": choice.kept,
        "seed": seed,
        "by": "playing, greedy" if played else "OPE, sampled",
        "value": result.values[seed],  # the highest of several: it flatters
        "value_of_seeds": list(result.values),
        "advantage_over_bc": next(
            (
                {"value": each.value, "interval": [each.low, each.high]}
                for each in choice.differences
                if (each.ours, each.theirs) == (choice.kept, BASELINE)
            ),
            None,
        ),
        "why": choice.sentence,
    }


def _page(
    report: Mapping[str, Any], rows: Sequence[Row], lines: Sequence[str], played: bool
) -> Iterator[str]:
    machine = report["machine"]
    yield f"# Offline benchmark of {report['date'][:10]}"
    yield from ("", *(f"{line}\n" for line in lines), _HOW if played else f"{_HOW} {_BY_LOG}", "")
    yield from (f"`{report['command']}`, on {machine['cores']} cores of {machine['cpu']}", "")
    yield from (table.title(rows[0].settings), "")
    scores = [row for row in rows if row.name.startswith("score/")]
    if scores:
        lines = [
            f"{_after(r.name)} | {r.value:,.4g} | {_interval(r)} | {len(r.samples)} | "
            f"{', '.join(f'{sample:,.4g}' for sample in r.samples)}"
            for r in scores
        ]
        yield from _section(
            "Mean returns of greedy episodes",
            "agent | IQM | 95 % interval | seeds | of each seed",
            [*lines, f"the dataset | {rows[0].settings['return in the dataset']:,.4g} | | | "],
        )
    by_log = [row for row in rows if row.name.startswith("ope/")]
    if by_log:
        lines = [
            f"{_after(r.name)} | {r.value:,.4g} | {_interval(r)} | "
            f"{', '.join(f'{sample:,.4g}' for sample in r.samples)} | {_trust(r)}"
            for r in by_log
        ]
        heading = "agent | discounted value | 95 % interval by the log | of each seed | trust"
        yield from _section(f"By the log alone ({by_log[0].settings['estimator']})", heading, lines)
    ahead = [row for row in rows if row.name.startswith("advantage/")]
    if ahead:
        lines = [
            f"{_after(r.name).replace('_over_', ' over ')} | {r.value:,.4g} | "
            f"{_interval(r) or 'unknown: one seed'} | {'yes' if _excludes_0(r) else 'no'}"
            for r in ahead
        ]
        yield from _section("Differences", "pair | of means | interval | excludes 0", lines)
    failures = [row for row in rows if row.name.startswith("failed/")]
    if failures:
        lines = [f"{_after(row.name)} | {row.unit}" for row in failures]
        yield from _section("Failed", "what | why", lines)


def _section(heading: str, header: str, lines: Sequence[str]) -> Iterator[str]:
    rule = " | ".join(["---"] * (header.count("|") + 1))
    yield from (f"## {heading}", "", *(f"| {line} |" for line in (header, rule, *lines)), "")


def _after(name: str) -> str:
    return name.partition("/")[2]


def _trust(row: Row) -> str:
    return str(row.settings[f"trust of {_after(row.name)}"])


def _interval(row: Row) -> str:
    return f"[{row.interval[0]:,.4g}, {row.interval[1]:,.4g}]" if row.interval else ""


def _excludes_0(row: Row) -> bool:
    return row.interval is not None and (row.interval[0] > 0 or row.interval[1] < 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the report of a results file anew; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if len(arguments) != 1 or not pathlib.Path(arguments[0]).is_file():
        print("error: one argument is needed: the file that the benchmark wrote.", file=sys.stderr)
        return 2
    output = pathlib.Path(arguments[0])
    try:
        for line in write(json.loads(output.read_text()), output, pathlib.Path("runs/offline")):
            print(line)
    except (UsageError, KeyError, json.JSONDecodeError) as error:
        print(f"error: {output}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
