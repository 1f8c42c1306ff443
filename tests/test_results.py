"""README and docs have the figures of the CSVs that the benchmarks wrote: none is left from an older run."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asset_options
import assets
import attribution_retraining
import convergence
import distill_one_step
import distill_variance
import pytest
import regime_map
import teacher
import variance_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
Row = dict[str, str]


def rows(name: str) -> list[Row]:
    """The lines of a CSV of docs/results."""
    with (RESULTS / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def percent(share: str) -> str:
    return f"{100 * float(share):.0f} %"


def variance(name: str = "variance-default.csv") -> list[str]:
    """A table of a scene, a line for each point, method and (R, K)."""
    tables: dict[str, list[Row]] = {}
    for row in rows(name):
        tables.setdefault(row["prompt"], []).append(row)
    return variance_table.table(list(tables.values())).splitlines()[2:]


def cameras() -> list[str]:
    return variance("variance-cameras.csv")


def voxel() -> list[str]:
    return variance("variance-voxel.csv")


def voxel_gain() -> list[str]:
    return default_gain("variance-voxel.csv", digits=2)


def default_gain(name: str = "variance-default.csv", digits: int = 1) -> list[str]:
    """The ECM of the default estimator, one pair of one render, at the three points."""
    cells = [line.split(" | ") for line in variance(name)]
    ecm = [line[6].split(" ")[0] for line in cells if line[1:3] == ["is+strat+antithetic", "(1, 2)"]]
    return [f"{', '.join(f'{float(x):.{digits}f}' for x in ecm)} |"]


def loops() -> list[str]:
    """The variance of each patched loop."""
    lines = []
    for row in rows("hosts.csv"):
        ecm = "1" if row["step"] == "stock" else f"{row['ecm']} [{row['ecm_low']}, {row['ecm_high']}]"
        variances = f"{float(row['inner']):.3g} | {float(row['outer']):.3g}"
        lines.append(f"| {row['host']} | {row['step']} | {1000 * float(row['seconds']):.0f} | {variances} | {ecm} |")
    return lines


def dreamgaussian() -> list[str]:
    """Of 4 draws, at any timestep and at the annealed one."""
    four = {row["host"]: row for row in rows("hosts.csv") if row["step"] == "K = 4"}
    ecm = [four[host] for host in ("dreamgaussian", "dreamgaussian annealed")]
    return [
        "| {:.1f} [{:.1f}, {:.1f}] |".format(*(float(row[name]) for name in ("ecm", "ecm_low", "ecm_high")))
        for row in ecm
    ]


def asset_row() -> list[str]:
    """Runs, nearest shape, PSNR, objects that gain 4 dB, IoU, classifier."""
    figures: list[dict[str, Any]] = [
        {name: value if name in ("object", "color", "nearest") else float(value) for name, value in row.items()}
        for row in rows("assets-default.csv")
    ]
    return ["|".join(["", *assets.table("", figures).split("|")[2:8], ""])]


def teachers() -> list[str]:
    """What the classifier names in samples of both shipped models, and in true renders."""
    names = {"carv-tiny": "1.1, shipped", "carv-tiny-128": "128", "true renders": "true renders"}
    lines = []
    for row in rows("teacher.csv"):
        combined, _, _, *shares = teacher.line(row).strip("| ").split(" | ")
        lines.append(" | ".join(["| " + combined, names[row["model"]], *shares]) + " |")
    return lines


def model_card() -> list[str]:
    """The same, as the card of carv-tiny-128 has it."""
    names = {"carv-tiny": "carv-tiny 1.1"}
    lines = []
    for row in rows("teacher.csv"):
        decibel = f"{float(row['autoencoder']):.1f} dB" if row["autoencoder"] else "—"
        shares = [f"{100 * float(row[name]):.1f} %" for name in ("object", "color", "both", "view")]
        model = names.get(row["model"], row["model"])
        lines.append(f"| {' | '.join([row['combinations'], model, decibel, *shares])} |")
    return lines


def more_asset_changes() -> list[str]:
    return asset_changes("asset-options-more.csv")


def asset_changes(name: str = "asset-options.csv") -> list[str]:
    """Each change of the default alone; the last column, of seconds, is a time like any other."""
    runs: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows(name):
        runs.setdefault(row["variant"], {})[row["object"]] = row
    return asset_options.table(runs)


def one_step() -> list[str]:
    return [distill_one_step.line(row) for row in rows("distill-one-step.csv")]


def gradient_variance() -> list[str]:
    """Of the one-step generator's gradient, by setting."""
    return [distill_variance.line(row) for row in rows("distill-variance.csv")]


def regimes() -> list[str]:
    """Of the default scene: a line for each point and simulated upstream cost."""
    return [regime_map.line(regime) for regime in regime_map.lines(RESULTS / "regimes-default.csv")]


def convergence_table() -> list[str]:
    """Of the default scene: final means, and ratios to reach the baseline's."""
    return convergence.table(rows("convergence-default.csv")).splitlines()[2:]


def convergence_gain() -> list[str]:
    """The PSNR's ratio of seconds."""
    psnr = next(row for row in rows("convergence-default.csv") if row["score"] == "psnr")
    mean, _, interval = convergence.shown_ratio(psnr, "seconds").partition(" ")
    return [f"| {mean}x {interval} |"]


def asset_limits() -> list[str]:
    _, _, nearest, psnr, _, iou, *_ = asset_row()[0].split("|")
    mean, least = iou.strip(" )").split(" (")
    share = percent(str(float(nearest.strip(" %")) / 100))
    return [f"asked for in {share}, mean PSNR {psnr.strip()}, mean IoU {mean}, least {least}."]


def sense(name: str) -> Callable[[], list[str]]:
    """The share of the top 20 that shows the object and the color, of each method."""

    def lines() -> list[str]:
        return [
            f"| {percent(row['same object'])} | {100 * float(row['by chance']):.1f} % "
            f"| {percent(row['same color'])} | {100 * float(row['color by chance']):.1f} % "
            f"| {row['queries']} of {row['queries']} | {percent(row['probability of the top 20'])} |"
            for row in rows(name)
        ]

    return lines


def designs(name: str) -> Callable[[], list[str]]:
    """The ECM of strata with pairs, of every number of evaluations from 4 on."""

    def lines() -> list[str]:
        made = [
            row for row in rows(name) if row["design"] == "stratified + antithetic pairs" and row["evaluations"] != "2"
        ]
        cells = [f"{float(x['ECM']):.2f} ({float(x['low']):.2f}–{float(x['high']):.2f})" for x in made]
        return [f"| stratified + antithetic pairs | {' | '.join(cells)} |"]

    return lines


def allocation() -> list[str]:
    row = rows("attribution-allocation.csv")[0]
    ends = f"({float(row['low']):.2f} to {float(row['high']):.2f})"
    return [f"At {row['draws']} draws an image the ECM is **{float(row['ECM']):.2f}** {ends}"]


def sense_of_the_default() -> list[str]:
    row = rows("attribution-sense.csv")[0]
    return [f"| {percent(row['same object'])} (chance 2.5 %), {percent(row['same color'])} (chance 8.3 %) |"]


def attribution_gain() -> list[str]:
    """The ECM of strata with pairs at 64 evaluations: of all layers, of the default gradients."""
    shown = []
    for name in ("attribution-designs-layers.csv", "attribution-designs.csv"):
        key = ("stratified + antithetic pairs", "64")
        (row,) = (row for row in rows(name) if (row["design"], row["evaluations"]) == key)
        shown.append("{:.1f} [{:.1f}, {:.1f}]".format(*(float(row[column]) for column in ("ECM", "low", "high"))))
    return [f"| {', '.join(shown)} |"]


def speed() -> list[str]:
    """Milliseconds of a draw and the quotient. The CSV's names are those of the parameters."""
    return [
        f"| {row['milliseconds a draw']} | {row['times as fast as all']} |" for row in rows("attribution-speed.csv")
    ]


def retraining() -> list[str]:
    return attribution_retraining.markdown(RESULTS / "attribution-retraining.csv").splitlines()


def compiled() -> list[str]:
    """Processor milliseconds of each path at both sizes."""
    times: dict[str, list[str]] = {}
    for row in rows("hash-grid.csv"):
        times.setdefault(row["path"], []).append(f"{float(row['cpu_ms']):,.0f}")
    return [f"| {' | '.join(pair)} |" for pair in times.values()]


def odd_inputs() -> list[str]:
    """Of the last whole run."""
    *areas, total = rows("fuzz.csv")
    assert total["area"] == "all"
    assert {row["inputs"] for row in areas} == {areas[0]["inputs"]}
    assert {total[name] for name in ("tracebacks", "hangs", "wrongly accepted")} == {"0"}
    inputs, refused = (f"{int(total[name]):,}" for name in ("inputs", "refused"))
    return [f"{inputs} inputs, {areas[0]['inputs']} in each of {len(areas)} areas, of which {refused} were refused"]


def faults() -> list[str]:
    """Kills and full disks of the four subjects that were tried 50 times."""
    tried = dict.fromkeys(("kill", "full"), 0)
    for row in rows("faults.csv"):
        assert row["losses"] == "0"
        tried[row["fault"]] = tried.get(row["fault"], 0) + int(row["tried"]) * (row["subject"] != "compare")
    most = max(int(row["most steps done again"]) for row in rows("faults.csv"))
    return [f"{tried['kill']} kills and {tried['full']} full disks", f"at most {most} steps done again"]


def planted_faults() -> list[str]:
    """All, and those that a test notices."""
    outcomes = [row["outcome"] for row in rows("mutants.csv")]
    killed = outcomes.count("killed")
    return [f"{len(outcomes)} planted faults: {killed} are killed, and the {len(outcomes) - killed} others"]


def stock_configurations(name: str) -> list[int]:
    """Of the 55 with these packages: three steps, no configuration, CUDA, data, wrong in itself, not run."""
    results = [row["result"] for row in rows("threestudio-configs.csv") if row["packages"].startswith(name)]
    kinds = ("3 steps", "no system_type", "CUDA only", "needs a ", "names data.")
    counts = [sum(result.startswith(kind) for result in results) for kind in kinds]
    assert len(results) == 55
    return [*counts, len(results) - sum(counts)]


def stock_table() -> list[str]:
    names = {"torch 2.13.": "torch 2.13, diffusers 0.42", "torch 2.0.": "threestudio's pins: torch 2.0, diffusers 0.19"}
    counts = {shown: " | ".join(map(str, stock_configurations(name))) for name, shown in names.items()}
    return [f"| {shown} | {cells} |" for shown, cells in counts.items()]


def stock_sentence() -> list[str]:
    done, *left = stock_configurations("torch 2.13.")
    sentence = "{}, {} name no system, {} need CUDA, {} needs CO3D's data, and {} names an option".format(
        *[sum(left), *left[:4]]
    )
    return [f"{done} ran three steps", f"Of the other {sentence}"]


@pytest.mark.parametrize(
    ("page", "figures"),
    [
        ("docs/results/variance.md", variance),
        ("docs/results/variance.md", cameras),
        ("docs/results/variance.md", voxel),
        ("README.md", default_gain),
        ("README.md", voxel_gain),
        ("docs/HOSTS.md", loops),
        ("README.md", dreamgaussian),
        ("docs/results/training.md", teachers),
        ("carv_3d/tiny/weights_128/README.md", model_card),
        ("docs/results/training.md", asset_row),
        ("README.md", asset_limits),
        ("docs/results/training.md", asset_changes),
        ("docs/results/training.md", more_asset_changes),
        ("docs/results/convergence.md", convergence_table),
        ("docs/results/distillation.md", one_step),
        ("docs/results/distillation.md", gradient_variance),
        ("docs/results/regimes.md", regimes),
        ("README.md", convergence_gain),
        ("docs/results/attribution.md", sense("attribution-sense.csv")),
        ("docs/results/attribution.md", sense("attribution-sense-images.csv")),
        ("docs/results/attribution.md", sense("attribution-sense-assets.csv")),
        ("docs/results/attribution.md", designs("attribution-designs.csv")),
        ("docs/results/attribution.md", designs("attribution-designs-layers.csv")),
        ("docs/results/attribution.md", allocation),
        ("README.md", sense_of_the_default),
        ("README.md", attribution_gain),
        ("docs/results/attribution.md", speed),
        ("docs/results/attribution.md", retraining),
        ("docs/results/README.md", compiled),
        ("docs/results/README.md", odd_inputs),
        ("docs/results/README.md", faults),
        ("docs/results/README.md", planted_faults),
        ("docs/results/README.md", stock_table),
        ("docs/THREESTUDIO.md", stock_sentence),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_page_has_the_figures_of_the_table(page: str, figures: Callable[[], list[str]]) -> None:
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    lines = [" ".join(line.split()) for line in figures()]
    assert lines
    assert [line for line in lines if line not in text] == []
