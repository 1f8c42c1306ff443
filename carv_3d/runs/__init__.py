"""The life of a run in its folder: checkpoints, signals, progress."""
