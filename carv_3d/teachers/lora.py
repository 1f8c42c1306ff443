"""A low-rank, camera-conditioned variant of a frozen UNet, switched on and off (arXiv 2106.09685, 2305.16213).

By forward hooks on the attention's linear layers, so that it works in every diffusers, and leaves the UNet's own
modules and parameters what they are: one UNet is the frozen teacher and, within `active`, the trained variant.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import weakref
from collections.abc import Callable, Iterator
from numbers import Integral
from typing import Any

from torch import Tensor, nn

from carv_3d.errors import CarvError, shown

MOST_RANK = 4096
ATTENTION_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")


class LowRank(nn.Module):
    """x (..., in) -> up(down(x)) (..., out) in float32; zero until it is trained."""

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=False)
        nn.init.normal_(self.down.weight, std=1 / rank)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features); zero until it is trained."""
        out: Tensor = self.up(self.down(x.to(self.down.weight.dtype)))
        return out


class CameraLora(nn.Module):
    """What is trained: a LowRank parallel to each attention layer, and a camera embedding added to that of time.

    It holds its own parameters only, in float32; the UNet is not a submodule of it.
    """

    def __init__(self, unet: Any, rank: int = 4, camera_width: int = 16) -> None:
        """A camera_width of 0 is for no camera: the LoRA alone.

        Raises CarvError for no UNet, one without attention, or a rank that is no whole number from 1 to MOST_RANK.
        """
        super().__init__()
        self._cameras: dict[int, Tensor] = {}  # by the thread that it is active in
        if isinstance(rank, bool) or not isinstance(rank, (int, Integral)) or not 1 <= rank <= MOST_RANK:
            raise CarvError(f"lora_rank is {shown(rank)}; it must be a whole number from 1 to {MOST_RANK}.")
        self.camera_width = camera_width
        self.layers, handles = nn.ModuleDict(), []
        for name, module in unet.named_modules():
            if isinstance(module, nn.Linear) and name.endswith(ATTENTION_LAYERS):
                key = name.replace(".", "_")
                self.layers[key] = LowRank(module.in_features, module.out_features, rank)
                handles.append(module.register_forward_hook(Hook(self, key)))
        if not self.layers:
            raise CarvError("the UNet has no attention layers (to_q, to_k, to_v, to_out): name another model.")
        if not hasattr(unet, "time_embedding"):
            raise CarvError(f"the LoRA score is for a UNet, and this is a {type(unet).__name__}: name another model.")
        width = int(unet.time_embedding.linear_2.out_features)
        if camera_width:
            self.camera_embedding = nn.Sequential(nn.Linear(camera_width, width), nn.SiLU(), nn.Linear(width, width))
            handles.append(unet.time_embedding.register_forward_hook(Hook(self)))
        for handle in handles:  # a UNet keeps no hook of a LoRA that is gone
            weakref.finalize(self, handle.remove).atexit = False

    @contextlib.contextmanager
    def active(self, camera: Tensor) -> Iterator[None]:
        """Within, and in this thread, the UNet is the variant, for samples seen from camera (N, camera_width)."""
        thread = threading.get_ident()
        self._cameras[thread] = camera
        try:
            yield
        finally:
            self._cameras.pop(thread, None)

    @property
    def untouched(self) -> bool:
        """Whether no training step has reached it yet."""
        ups = (value for name, value in self.layers.named_parameters() if name.endswith("up.weight"))
        return not any(bool(value.any()) for value in ups)

    def changed(self, key: str, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A layer's output with its update, or, of the key "", the embedding of time with that of the camera.

        Args:
            key: of the layer.
            inputs: what it was given.
            output: what it made of that, which is returned as it is outside of `active`.
        """
        camera = self._cameras.get(threading.get_ident())
        if camera is None:
            return output
        if key:
            added: Tensor = self.layers[key](inputs[0])
        else:
            dtype = next(self.camera_embedding.parameters()).dtype
            added = self.camera_embedding(camera.to(device=output.device, dtype=dtype))
        return output + added.to(output.dtype)


class Hook:
    """A forward hook that asks a CameraLora, and does not keep it alive. Copied with it, it asks the copy."""

    def __init__(self, lora: CameraLora | None, key: str = "") -> None:
        self._lora: Callable[[], CameraLora | None] = type(None) if lora is None else weakref.ref(lora)
        self.key = key

    def __call__(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """As torch calls it."""
        lora = self._lora()
        return output if lora is None else lora.changed(self.key, inputs, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return Hook(copy.deepcopy(self._lora(), memo), self.key)

    def __reduce__(self) -> Any:
        return Hook, (self._lora(), self.key)
