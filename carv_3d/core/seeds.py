"""Seeds that are independent of each other, from one."""

from __future__ import annotations

import numpy as np


def seed_for(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose, so that one more draw for one does not shift the others."""
    state = np.random.SeedSequence([seed, *purpose.encode()]).generate_state(1, np.uint64)
    return int(state[0]) % 2**63
