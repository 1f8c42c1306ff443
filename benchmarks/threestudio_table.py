"""The measured tables of the guidance types, from docs/results/threestudio-types.csv and threestudio-states.csv.

python benchmarks/threestudio_table.py           the whole table, as in docs/THREESTUDIO.md
python benchmarks/threestudio_table.py --short   as in the extension's README
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
ENDS = ("K = 8 over 8 stock steps", "ECM at K = 8", "resumed", "two ranks")
WHOLE = ("type", "error at K = 1", "ms, stock", "K = 1", "K = 4", "K = 8", ENDS[0], "ECM at K = 4", *ENDS[1:])
SHORT = ("type", "error at K = 1", *ENDS)


def cells() -> Iterator[dict[str, str]]:
    """Of each type, what the columns of WHOLE say; a state is "yes" where it was had with all packages."""
    states: dict[str, list[dict[str, str]]] = {}
    with (RESULTS / "threestudio-states.csv").open(newline="") as handle:
        for row in csv.DictReader(handle):
            states.setdefault(row["type"], []).append(row)
    measured: dict[str, dict[str, dict[str, str]]] = {}
    with (RESULTS / "threestudio-types.csv").open(newline="") as handle:
        for row in csv.DictReader(handle):
            measured.setdefault(row["type"], {})[row["K"]] = row
    for kind, by_draws in measured.items():
        out = {"type": kind.removesuffix("-guidance"), "error at K = 1": by_draws["1"]["parity"].replace("e-0", "e-")}
        for K, row in by_draws.items():
            out["ms, stock" if K == "0" else f"K = {K}"] = f"{1e3 * float(row['seconds']):.1f}"
            ecm, low, high = (float(row[name]) for name in ("ecm", "ecm_low", "ecm_high"))
            out[f"ECM at K = {K}"] = f"{ecm:.1f} [{low:.1f}, {high:.1f}]"
        out[ENDS[0]] = f"{float(by_draws['8']['k8_over_8']):.2f}"
        for column, name in (("resumed", "resume"), ("two ranks", "two ranks")):
            failed = [row for row in states[kind] if not row[name].startswith("steps ")]
            out[column] = f"{failed[0][name]} ({failed[0]['packages']})" if failed else "yes"
        yield out


def table(columns: Sequence[str]) -> str:
    """Markdown, a line for each type."""
    rows = [[row[name] for name in columns] for row in cells()]
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("| --- ", "|---").replace("--- |", "---|")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true")
    print(table(SHORT if parser.parse_args().short else WHOLE))
