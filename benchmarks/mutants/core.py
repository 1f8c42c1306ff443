"""Faults in the estimator."""

MUTANTS = [
    ("carv_3d/core/designs.py", "u = (first + xi) / groups", "u = (first + 0.5) / groups", "tests/core"),
]
