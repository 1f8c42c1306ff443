"""Scores over rows on the disk: the same as over rows in memory, in chunks whose memory is given back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from carv_3d.attribution import bilinear, cosine, kernel, relatif

STATUS = Path("/proc/self/status")


def resident() -> float:
    """MiB of this process in memory now, mapped files included."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 2**10


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_on_the_disk_have_the_scores_of_rows_in_memory(dtype: type, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((1300, 2, 8)).astype(dtype)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    queries = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    whole, on_disk = torch.from_numpy(rows.astype(np.float64)), mapped
    for score in (bilinear, cosine, lambda q, f: relatif(q, f, 0.1)):
        expected, actual = score(queries, whole), score(queries, on_disk)
        assert torch.equal(actual.values, expected.values)
        assert torch.equal(actual.errors, expected.errors)
    direct = torch.einsum("qhd,ngd->qn", queries.double(), whole) / 6
    assert bilinear(queries, mapped).top(1, 5) == direct[1].argsort(descending=True)[:5].tolist()


@pytest.mark.skipif(not STATUS.exists(), reason="memory is read from /proc")
def test_the_memory_of_a_search_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    rows = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.float32, (24_000, 2, 1024))  # 188 MiB, sparse
    rows[::1000] = 1.0
    rows.flush()
    del rows
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    query = torch.ones(1, 2, 1024)
    bilinear(query, mapped[:2000])
    before = resident()
    scores = bilinear(query, mapped)
    assert resident() - before < 90
    assert scores.values[0, ::1000].tolist() == [1024.0] * 24
    assert float(scores.values.sum()) == 24 * 1024.0
    kernel(mapped[:1000])
