"""`benchmarks/threestudio_types.py` measures every stock type that has a counterpart."""

from __future__ import annotations

from pathlib import Path

import pytest
import threestudio_table
import threestudio_types as table

from carv_3d.hosts.counterparts import COUNTERPARTS


def test_every_type_of_threestudio_is_measured_by_its_recorded_gradients() -> None:
    assert set(table.RECORDED) == set(COUNTERPARTS)
    for name, _ in table.RECORDED.values():
        text = (Path(__file__).parent / name).read_text()
        assert "stock_gradient" in text
        assert "recorded.check_gradients(" in text  # which the benchmark listens to


PAGES = {"docs/THREESTUDIO.md": threestudio_table.WHOLE, "custom/threestudio-carv/README.md": threestudio_table.SHORT}


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_have_the_table_of_the_results(page: str) -> None:
    lines = (Path(__file__).parents[2] / page).read_text().splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("| type | error at K = 1"))
    end = next(i for i in range(begin, len(lines)) if not lines[i].startswith("|"))
    assert "\n".join(lines[begin:end]) == threestudio_table.table(PAGES[page])
    assert {line.split(" ")[1] + "-guidance" for line in lines[begin + 2 : end]} == set(COUNTERPARTS)


def test_a_cell_that_was_not_had_shows_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = "a-guidance,{K},0.01,1,{eight},1,2.04,1.5,2.56,{error}\n"
    rows = [row.format(K=K, eight=0.254 * (K == 8), error="1.5e-06" * (K == 1)) for K in (0, 1, 4, 8)]
    header = "type,K,seconds,over_stock,k8_over_8,variance,ecm,ecm_low,ecm_high,parity\n"
    (tmp_path / "threestudio-types.csv").write_text(header + "".join(rows))
    states = "type,config,packages,resume,two ranks\na-guidance,c,old,steps 4 to 6,no: CUDA only\n"
    states += "a-guidance,c,new,steps 4 to 6,steps 1 to 3\n"
    (tmp_path / "threestudio-states.csv").write_text(states)
    monkeypatch.setattr(threestudio_table, "RESULTS", tmp_path)
    last = threestudio_table.table(threestudio_table.SHORT).splitlines()[-1]
    assert last == "| a | 1.5e-6 | 0.25 | 2.0 [1.5, 2.6] | yes | no: CUDA only (old) |"
    last = threestudio_table.table(threestudio_table.WHOLE).splitlines()[-1]
    assert last.startswith("| a | 1.5e-6 | 10.0 | 10.0 | 10.0 | 10.0 | 0.25 | 2.0 [1.5, 2.6] |")
