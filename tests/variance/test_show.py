"""Tables and sentences of `carv variance`."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

from variance_scene import SETTINGS, made_up, setting

from carv_3d.variance.benchmark import Batch
from carv_3d.variance.figures import Timesteps, rows
from carv_3d.variance.methods import BASELINE, method
from carv_3d.variance.show import print_table, rich_table, summary, write_csv, write_timesteps


def test_the_papers_figures_stand_next_to_ours_where_they_are_comparable(tmp_path: Path) -> None:
    settings = [BASELINE, setting(1, 8, "is+strat"), setting(1, 8, "is+strat+antithetic")]
    seconds = {k: {"step": 1.0, "denoise": 0.5} for k in (*(s.key for s in settings), "all")}
    v_in = {s.key: 1.0 for s in settings}
    table = rows(0, settings, [Batch(v_in, {"2,0,0": 1.0, "1,0,0": 1.0}, seconds, [])] * 2)
    assert [row.paper_ecm for row in table] == [None, 3.3, None]
    write_csv(tmp_path / "variance.csv", table)
    lines = list(csv.DictReader((tmp_path / "variance.csv").read_text().splitlines()))
    assert {x["batches"] for x in lines} == {"2"}
    assert {x["ecm_low"] for x in lines} == {""}
    assert [(x["method"], x["paper_ecm"], x["paper_re"]) for x in lines] == [
        ("uniform", "", ""), ("is+strat", "3.3", "1.25-1.31"), ("is+strat+antithetic", "", ""),
    ]  # fmt: skip
    assert float(lines[1]["ecm"]) == table[1].ecm.value == 1
    assert float(lines[1]["seconds_denoise"]) == 0.5


def test_a_narrow_console_gets_the_whole_table() -> None:
    from io import StringIO

    from rich.console import Console

    narrow = Console(width=40, file=(shown := StringIO()))
    table = rows(7, SETTINGS, made_up((7.0, 3.0), (9.0, 5.0)))
    long = replace(table[1], setting=replace(table[1].setting, method=method("is+strat+antithetic")))
    print_table(rich_table([*table, long]), narrow)
    assert "┃ R ┃ K ┃" in shown.getvalue()
    assert "is+strat+antithetic" in shown.getvalue()
    assert "2.25" in shown.getvalue()  # the ECM by hand, above
    assert "2 batches; intervals are shown from 8 on" in shown.getvalue()
    assert "…" not in shown.getvalue()


def test_every_figure_has_its_column(tmp_path: Path) -> None:
    table = rows(7, SETTINGS, made_up(*[(7.0, 3.0), (9.0, 5.0)] * 4))
    write_csv(tmp_path / "variance.csv", table)
    for row, line in zip(table, csv.DictReader((tmp_path / "variance.csv").read_text().splitlines())):
        s, re = row.setting, row.re
        assert (line["step"], line["method"], line["R"], line["K"]) == ("7", s.method.name, str(s.R), str(s.K))
        expected = {
            "variance": row.variance.value, "variance_low": row.variance.low, "variance_high": row.variance.high,
            "s_out2": row.s_out2, "v_in": row.v_in, "upstream_share": row.upstream_share, "seconds": row.seconds,
            "ecm": row.ecm.value, "ecm_low": row.ecm.low, "ecm_high": row.ecm.high, "ecm_bound": row.bound,
            "seconds_denoise": row.phases["denoise"], "batches": 8,
        }  # fmt: skip
        if re is not None:
            expected |= {"re": re.value, "re_low": re.low, "re_high": re.high}
        else:
            assert (line["re"], line["re_low"], line["re_high"]) == ("", "", "")
        assert {name: float(line[name]) for name in expected} == {k: float(f"{v:.6g}") for k, v in expected.items()}
    assert math.isfinite(table[2].ecm.low)


def test_the_gradients_size_by_timestep_is_a_table(tmp_path: Path) -> None:
    by_t = {3: Timesteps([10.0, 30.0], [2.0, 1.0], [0.25, 0.75], [0.5, 0.5], 0.875)}
    write_timesteps(tmp_path / "t.csv", by_t)
    assert (tmp_path / "t.csv").read_text().splitlines() == [
        "step,t,norm,weight,oracle,oracle_share", "3,10,2,0.25,0.5,0.875", "3,30,1,0.75,0.5,0.875",
    ]  # fmt: skip


def test_a_step_in_sentences() -> None:
    table = rows(7, SETTINGS, made_up((7.0, 3.0), (9.0, 5.0)))
    by_t = Timesteps([10.0], [1.0], [1.0], [1.0], 0.9)
    first, second, third = summary(table, by_t)
    assert "3000 ms; upstream is 11% of its variance, and 0.50 of the rest's seconds go to denoising" in first
    assert second == "Best: is at (1, 2), ECM 2.25; free draws without noise would have 13.50."
    assert "reaches 90% of the oracle's reduction (the paper: 94% to 97%)" in third
    assert "gains nothing over uniform timesteps" in summary(table, replace(by_t, share=-0.1))[2]
