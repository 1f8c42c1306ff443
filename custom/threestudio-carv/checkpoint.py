"""`system_type: dreamfusion-system:carv-checkpoint`: the guidance's state goes into threestudio's checkpoints.

Without it a resumed run continues too, with an adaptive proposal that learns anew and a fresh random stream.
"""

from __future__ import annotations

from typing import Any

import threestudio

KEY = "carv_guidance"


@threestudio.register("carv-checkpoint")
class CarvCheckpoint:
    """A mixin for any system whose guidance is one of this extension's. It has no Config: the system's own counts."""

    _carv_state: Any = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called by Lightning."""
        super().on_save_checkpoint(checkpoint)
        if hasattr(getattr(self, "guidance", None), "carv_state"):
            checkpoint[KEY] = self.guidance.carv_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called by Lightning, before there is a guidance in some systems."""
        super().on_load_checkpoint(checkpoint)
        self._carv_state = checkpoint.get(KEY)

    def on_fit_start(self) -> None:
        """Called by Lightning; some systems build their guidance here, others have it by now."""
        super().on_fit_start()
        if self._carv_state is not None and hasattr(self.guidance, "load_carv_state"):
            self.guidance.load_carv_state(self._carv_state)
            self._carv_state = None
