"""Scores of a query over millions of items whose features lie on the disk: items a second, memory, and exactness.

A synthetic store of --rows features is written to --folder. Each method's scores go over it in chunks, memory-mapped,
in a process of its own whose peak memory is read at a quarter of the rows and at all of them. The top --top of the
plain inner products are compared with those of one straight pass in float64.

    python benchmarks/attribution_search.py [--rows 2000000] [--dim 256] [--folder DIR] [--csv FILE]
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import run_script, script_parser

from carv_3d.attribution import bilinear, cosine, kernel, relatif, trak
from carv_3d.io.tables import csv_text

CSV = Path(__file__).resolve().parents[1] / "docs" / "results" / "attribution-search.csv"
METHODS = ("inner products", "cosine", "TRAK", "RelatIF")
BLOCK = 10_000
SAMPLE = 20_000  # rows that the kernel is made of
HEAD = ("method", "type", "rows", "dim", "GB", "seconds", "items_a_second", "items_a_cpu_second", "peak_mib", "exact")


def write_rows(path: Path, count: int, dim: int, dtype: str) -> None:
    """Normal numbers, unless they are there."""
    if path.exists() and np.load(path, mmap_mode="r").shape == (count, 1, dim):
        return
    rows = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), (count, 1, dim))
    generator = np.random.default_rng(0)
    for begin in range(0, count, BLOCK):
        block = rows[begin : begin + BLOCK]
        block[:] = generator.standard_normal(block.shape, dtype=np.float32)
    rows.flush()


def peak() -> float:
    """MiB, of this process so far (getrusage also counts what began it)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def measure(path: Path, method: str, count: int, top: int) -> dict[str, Any]:
    """One pass of a method over the first `count` rows."""
    rows = np.load(path, mmap_mode="r")[:count]
    query = torch.randn(1, 8, rows.shape[-1], generator=torch.Generator().manual_seed(1))
    gram = kernel(rows[:SAMPLE]) if method in ("TRAK", "RelatIF") else None
    calls = {
        "inner products": lambda: bilinear(query, rows),
        "cosine": lambda: cosine(query, rows),
        "TRAK": lambda: trak(query, rows, 0.1, gram),
        "RelatIF": lambda: relatif(query, rows, 0.1, gram),
    }
    begin, own = time.perf_counter(), time.process_time()
    scores = calls[method]()
    order = scores.top(0, top)
    seconds, own = time.perf_counter() - begin, time.process_time() - own
    memory, exact = peak(), None
    if method == "inner products":
        mean = query.double().mean(1)[0].numpy()
        every = np.concatenate([rows[i : i + BLOCK, 0].astype(np.float64) @ mean for i in range(0, count, BLOCK)])
        exact = order == np.argsort(-every, kind="stable")[:top].tolist()
    return {"seconds": seconds, "cpu": own, "peak": memory, "exact": exact}


def measured(path: Path, method: str, count: int, o: Any) -> tuple[Any, ...]:
    """The CSV's row of one measurement, in a process of its own."""
    command = [sys.executable, __file__, "--only", str(path), method, str(count), "--top", str(o.top)]
    out = subprocess.run([*command, "--threads", str(o.threads)], check=True, capture_output=True, text=True)
    m = json.loads(out.stdout.splitlines()[-1])
    size = count * o.dim * np.dtype(path.stem).itemsize / 1e9
    rate, own = round(count / m["seconds"]), round(count / m["cpu"])
    exact = "" if m["exact"] is None else "yes" if m["exact"] else "no"
    return (method, path.stem, count, o.dim, size, m["seconds"], rate, own, m["peak"], exact)


def main() -> None:
    """Every method over both types, as a CSV and a table."""
    parser = script_parser(__doc__, rows=2_000_000, dim=256, top=100, threads=1)
    parser.add_argument("--folder", type=Path, default=Path("build/search"))
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--only", nargs=3, metavar=("FILE", "METHOD", "ROWS"), help="one measurement, as JSON")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    if o.only:
        print(json.dumps(measure(Path(o.only[0]), o.only[1], int(o.only[2]), o.top)))
        return
    o.folder.mkdir(parents=True, exist_ok=True)
    table = []
    for dtype in ("float32", "float16"):
        path = o.folder / f"{dtype}.npy"
        write_rows(path, o.rows, o.dim, dtype)
        for method in METHODS:
            for count in (o.rows // 4, o.rows):
                row = measured(path, method, count, o)
                print(row, flush=True)
                table.append(row)
    o.csv.write_text(csv_text(HEAD, table), encoding="utf-8")
    print("| method | type | items | GB | items a second | of the core's own | peak MiB |\n" + "|---" * 7 + "|")
    for method, dtype, count, _, size, _, rate, own, memory, _ in table:
        print(f"| {method} | {dtype} | {count:,} | {size:.2f} | {rate:,} | {own:,} | {memory:.0f} |")


if __name__ == "__main__":
    run_script(main)
