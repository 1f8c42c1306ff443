"""Table 3 of arXiv 2605.21489 with carv-tiny: the variance of the generator's gradient by samples, draws and design.

    ./install.sh python benchmarks/distill_variance.py [--from RUN] [--pairs 40] [--budget 1800] [--out FILE]
                                                       [KEY=VALUE ...]

A new generator and a new fake score are the teacher's own copies, so that the two scores differ by guidance alone; a
run of carv distill (--from) is measured where it stands. The paper's figures are of another model and of its own
scale: what compares is the ratio to (8, 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from bench import joined, run_script, script_parser

from carv_3d.distill.command import check_prompts, load_teacher
from carv_3d.distill.loop import Distillation
from carv_3d.distill.options import DistillOptions
from carv_3d.distill.request import Settings, read_distill_options, read_settings
from carv_3d.distill.variance import VarianceRow, check_settings, csv_cells, read_setting, variance_table, write_csv
from carv_3d.distill.variance_request import DEFAULT
from carv_3d.runs.checkpoint import load_checkpoint
from carv_3d.runs.progress import Display
from carv_3d.stats.bootstrap import Interval

FORMATS = {"variance": ".3g", "upstream": ".2g", "reduction": ".3g"}


def line(cells: Mapping[str, Any]) -> str:
    """A row of the table, of `csv_cells` or of a line of the CSV."""
    ends = (Interval(*(float(cells[f"{k}{end}"]) for end in ("", "_low", "_high"))).text(f) for k, f in FORMATS.items())
    paper = (cells[name] or "—" for name in ("paper_variance", "paper_reduction"))
    return f"| {' | '.join([cells['setting'], *ends, format(float(cells['seconds']), '.2f'), *paper])} |"


def markdown(rows: Sequence[VarianceRow]) -> str:
    """The table, with the paper's figures where it has them."""
    names = ("samples x draws", "variance", "upstream part of it", "first over this", "s a gradient")
    names += ("the paper's", "its ratio")
    head = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    return "\n".join([*head, *(line(csv_cells(row)) for row in rows)])


def main() -> int:
    parser = script_parser(__doc__, pairs=40)
    parser.add_argument("--model", default="carv-tiny")
    parser.add_argument("--from", dest="start", type=Path, metavar="RUN", help="measure a run of carv distill")
    parser.add_argument("--settings", type=joined(), default=list(DEFAULT), help="others are over the first")
    parser.add_argument("--budget", type=float, default=1800.0, help="seconds, if that comes first")
    parser.add_argument("--out", type=Path, help="a CSV of the table")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="options of carv distill")
    o = parser.parse_args()
    targets = [read_setting(text) for text in o.settings]
    check_settings(targets)
    # a run has its own objective and teacher
    settings = Settings(o.model, DistillOptions()) if o.start is None else read_settings(o.start)
    settings.options = options = read_distill_options(o.overrides, base=settings.options)
    prompts = check_prompts(settings)
    distillation = Distillation(load_teacher(settings), options, prompts)
    if o.start is not None:
        distillation.load_networks(load_checkpoint(o.start / "checkpoint")[0])
    display = Display()
    with display.progress(0, o.pairs, "pair") as show:
        rows = variance_table(distillation, targets, o.pairs, o.budget, options.seed, show=lambda done: show(done, {}))
    count = sum(p.numel() for p in distillation.generator.parameters())
    print(
        f"\n{settings.model}, step {distillation.step}, tr Cov over {count:,} parameters, {rows[0].pairs} pairs of "
        f"gradients each, guidance {options.guidance_scale:g}, objective {options.objective}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}; 95 % bootstrap over pairs.\n"
    )
    if o.out:
        write_csv(o.out, rows)
    print(markdown(rows))
    return 0


if __name__ == "__main__":
    run_script(main)
