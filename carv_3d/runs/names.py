"""What the files of a run's folder are called."""

from __future__ import annotations

from pathlib import Path

CHECKPOINT, METRICS, CONFIG = "checkpoint", "metrics.csv", "config.yaml"
TENSORBOARD, WANDB_ID = "tb_logs", "wandb-id"


def previous_path(path: Path) -> Path:
    """Where the checkpoint before the newest lies."""
    return path.with_name(path.name + ".previous")
