"""`system_type: dreamfusion-system:carv-checkpoint`: the guidance's state goes into threestudio's checkpoints.

Without it a resumed run continues too, with an adaptive proposal that learns anew and a fresh random stream. Importing
this lets torch 2.6 and newer read threestudio's checkpoints, whether the system has the mixin or not.
"""

from __future__ import annotations

from typing import Any

import threestudio
from omegaconf import OmegaConf

from carv_3d.errors import CarvError
from carv_3d.hosts.checkpoints import allow_host_types, without_containers
from carv_3d.hosts.models import withdrawn_sentence

from .common import check_names

KEY = "carv_{}"  # by the guidance's name in the system: carv_guidance, carv_guidance_3d
GUIDANCES = ("guidance", "guidance_3d")


def check_guidances(cfg: Any) -> None:
    """Refuses a system's configuration before anything of it is built.

    Raises:
        CarvError: an option that a guidance does not have, or a model that was withdrawn from the hub.
    """
    plain = OmegaConf.to_container(OmegaConf.create(cfg), resolve=True)
    for name in GUIDANCES:
        kind = threestudio.find(plain[f"{name}_type"]) if plain.get(f"{name}_type") else None
        if hasattr(kind, "carv_state"):
            check_names(kind.Config, plain.get(name))
    sentence = withdrawn_sentence(plain)
    if sentence:
        raise CarvError(sentence)


allow_host_types(getattr(threestudio, "__modules__", {}).values())


@threestudio.register("carv-checkpoint")
class CarvCheckpoint:
    """A mixin for any system whose guidance is one of this extension's. It has no Config: the system's own counts."""

    _carv_states: dict[str, Any] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if args:
            check_guidances(args[0])
        super().__init__(*args, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called by Lightning, with everything else in the checkpoint."""
        super().on_save_checkpoint(checkpoint)
        for part in ("optimizer_states", "lr_schedulers"):
            if part in checkpoint:
                checkpoint[part] = without_containers(checkpoint[part])
        for name in GUIDANCES:
            if hasattr(getattr(self, name, None), "carv_state"):
                checkpoint[KEY.format(name)] = getattr(self, name).carv_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called by Lightning, before there is a guidance in some systems."""
        super().on_load_checkpoint(checkpoint)
        self._carv_states = {name: checkpoint[key] for name in GUIDANCES if (key := KEY.format(name)) in checkpoint}

    def on_fit_start(self) -> None:
        """Called by Lightning; some systems build their guidance here, others have it by now."""
        super().on_fit_start()
        self.train()  # which Lightning 2.2 and newer leaves to the user, and threestudio's renderers wait for
        states, self._carv_states = self._carv_states or {}, None
        for name, state in states.items():
            if hasattr(getattr(self, name, None), "load_carv_state"):
                getattr(self, name).load_carv_state(state)
