"""The rows on the disk: what is written is read, and the process does not grow with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from carv_3d.attribution.store import RowStore
from carv_3d.errors import CarvError

STATUS = Path("/proc/self/status")
SHAPE = (2, 2048)  # 16 KiB a row, as two groups of a projected gradient are


def resident() -> float:
    """MiB of this process in memory now, mapped files included."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 2**10


@pytest.mark.skipif(not STATUS.exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_items(tmp_path: Path) -> None:
    count, each = 6000, 64  # 94 MiB
    store = RowStore(tmp_path / "store", {}, count, SHAPE)
    memory = []
    for index in range(count):
        store.write(index, np.full(SHAPE, index, np.float32))
        if (index + 1) % each == 0:
            store.flush()
            memory.append(resident())
    store.flush()
    assert max(memory) - memory[0] < 20
    before = resident()
    again = RowStore(tmp_path / "store", {}, count, SHAPE)  # which looks at all of them
    assert resident() - before < 20
    read = [(float(again.read(i)[1, 2047]), resident()) for i in range(count)]
    assert [value for value, _ in read] == list(range(count))
    assert max(size for _, size in read) - before < 20
    assert again.complete
    assert [float(again.rows[i, 1, 2047]) for i in (0, 4321, count - 1)] == [0.0, 4321.0, count - 1.0]
    assert again.checksum() == store.checksum()


def test_a_torn_row_is_made_again(tmp_path: Path) -> None:
    store = RowStore(tmp_path / "store", {}, 3, (2, 4))
    for index in (0, 2):
        store.write(index, np.full((2, 4), index + 1.0, np.float32))
    store.flush()
    store.rows[2, 0, 0] = 7.0  # as a power cut between two pages leaves it
    again = RowStore(tmp_path / "store", {}, 3, (2, 4))
    assert again.pending().tolist() == [1, 2]


def test_a_store_of_other_items_takes_over_the_rows_that_have_the_same_keys(tmp_path: Path) -> None:
    def store(name: str, keys: str, **meta: object) -> RowStore:
        earlier = [p for p in sorted(tmp_path.iterdir()) if p.name != name]
        return RowStore(tmp_path / name, {"model": 1, "items": name, **meta}, len(keys), (2,), list(keys), earlier)

    first = store("first", "abc")
    for index in (0, 1):
        first.write(index, np.full(2, index + 1, np.float32))
    first.flush()
    second = store("second", "cbad")
    assert (second.taken_over, second.finished.tolist()) == (2, [False, True, True, False])
    assert second.rows[:, 0].tolist() == [0, 2, 1, 0]
    assert store("second", "cbad").finished.tolist() == [False, True, True, False]
    assert store("third", "ab", model=2).taken_over == 0
    images = "is of other training images or captions: put those back, name another folder, or leave --store out"
    with pytest.raises(CarvError, match=images):
        RowStore(tmp_path / "first", {"model": 1, "items": "adc3"}, 4, (2,), list("abcd"))
    with pytest.raises(CarvError, match="was made with model = 1, and now it is 2: set it back"):
        RowStore(tmp_path / "first", {"model": 2, "items": "adc3"}, 4, (2,), list("abcd"))
    first.rows[0] = 7  # torn: it does not match its checksum
    (tmp_path / "second" / "keys.json").write_text("{")
    assert store("fourth", "ab").finished.tolist() == [False, True]


def test_some_rows_are_not_all_and_what_is_read_is_a_copy(tmp_path: Path) -> None:
    store = RowStore(tmp_path / "store", {}, 3, (1,))
    row = np.frombuffer(b"\x9d\x0a\xd9\x6d", np.float32)  # its checksum is 0, which marks a row that is not there
    for index in range(3):
        assert not store.complete
        assert store.pending().tolist() == list(range(index, 3))
        store.write(index, row)
    assert store.complete
    read = store.read(1)
    read[0] = 5.0
    assert np.array_equal(store.rows, np.stack([row] * 3))
