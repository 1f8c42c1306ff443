"""The page and the table of `benchmarks/gpu.py`, from the results of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convergence import ratio_text

from carv_3d.io.tables import csv_text
from carv_3d.stats.bootstrap import Interval

Result = tuple[str, str, dict[str, Any]]  # model, part, {"rows": [...], "note": "..."}


def figures(results: Sequence[Result]) -> str:
    """Every figure in one CSV: model, part, the number of its row, column, value."""
    lines = [
        (model, part, number, column, value)
        for model, part, result in results
        for number, row in enumerate([*result["rows"], *([{"note": result["note"]}] if "note" in result else [])])
        for column, value in row.items()
    ]
    return csv_text(["model", "part", "row", "column", "value"], lines)


def page(results: Sequence[Result], machine: str) -> str:
    """Markdown: for each model a table of each part, or the reason why there is none."""
    lines = ["# Measured", "", f"{machine}. ECM: the effective compute multiplier over two renders of one draw.", ""]
    for model in dict.fromkeys(model for model, _, _ in results):
        lines += [f"## {model}", ""]
        for name, part, result in results:
            if name == model:
                lines += [f"### {part}", "", *_table(part, result), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(part: str, result: dict[str, Any]) -> list[str]:
    if "note" in result:
        return [f"Not measured: {result['note']}"]
    return TABLES[part](result["rows"])


def _steps(rows: Sequence[dict[str, Any]]) -> list[str]:
    """ms of a step by phase, what K steps of one draw would take, peak memory."""
    phases = sorted({name for row in rows for name in row if name.endswith("_s") and name != "step_s"})
    first = next((row for row in rows if row.get("K") == 1 and "step_s" in row), None)
    columns = ["K", "ms a step", "against K steps of one draw", *(f"{name[:-2]} ms" for name in phases), "peak GiB"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in rows:
        if "note" in row:
            lines.append(f"| {row['K']} | {row['note']} |" + " |" * (len(columns) - 2))
            continue
        ratio = "—" if first is None else f"{row['step_s'] / (row['K'] * first['step_s']):.2f}"
        step = f"{1e3 * row['step_s']:.1f}"
        each = [f"{1e3 * row.get(name, 0.0):.1f}" for name in phases]
        peak = f"{row['peak_GiB']:.2f}" if "peak_GiB" in row else "—"
        lines.append(f"| {' | '.join([str(row['K']), step, ratio, *each, peak])} |")
    return lines


def _variance(rows: Sequence[dict[str, Any]]) -> list[str]:
    """ECM by (R, K) with its interval, the upstream share, next to the paper's."""
    lines = ["| step | method | (R, K) | batches | upstream share | ECM [95 %] | the paper's |", "|" + "---|" * 7]
    for row in rows:
        ecm = _interval(row, "ecm", "ecm_low", "ecm_high")
        lines.append(
            f"| {row['step']} | {row['method']} | ({row['R']}, {row['K']}) | {row['batches']} "
            f"| {float(row['upstream_share']):.0%} | {ecm} | {row['paper_ecm'] or '—'} |"
        )
    return lines


def _convergence(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Final scores by method, and the seconds to the baseline's final score over those that it needed."""
    lines = ["| score | method | runs | final |", "|---|---|---|---|"]
    for row in rows:
        if row["table"] == "final":
            lines.append(f"| {row['metric']} | {row['method']} | {row['runs']} | {_interval(row, 'mean')} |")
    times = [r for r in rows if r["table"] == "time" and not r["prompt"] and r["axis"] == "seconds"]
    if times:
        lines += ["", "| score | seconds to the baseline's final score, ratio [95 %] |", "|---|---|"]
        lines += [f"| {row['metric']} | {ratio_text(row)} |" for row in times]
    return lines


def _interval(row: dict[str, Any], *names: str) -> str:
    """A value with its interval, where there are enough samples for one."""
    return Interval(*(float(row[name] or "nan") for name in (*names, "low", "high")[:3])).text()


def _lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [row["line"] for row in rows]


TABLES = {"steps": _steps, "variance": _variance, "convergence": _convergence, "threestudio": _lines}
