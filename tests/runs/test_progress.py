"""What a run's progress shows."""

from __future__ import annotations

import pytest

from carv_3d.runs import progress


def test_the_time_left_forgets_what_was_slow_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    eta, said = progress._Eta(100, 300), {}  # a resumed run
    for step in range(101, 201):
        now[0] += 4.0 if step <= 150 else 0.5
        said[step] = eta.left(step)
    assert said[110] == "12:40"  # 190 steps of 4 s
    assert said[150] == "10:00"
    assert said[175] == "1:02"  # 125 of half a second: the last 25 alone count
    assert said[200] == "0:50"
