"""Planted faults, one list for each part of the package; `benchmarks/mutation.py` applies them one by one."""
