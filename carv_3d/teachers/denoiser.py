"""A frozen network with the schedule of its training: eps_hat, whatever of noise, v or velocity it predicts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from carv_3d.core.arguments import FAILURES, described, refuse_arguments
from carv_3d.core.brief import Brief
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError, packages
from carv_3d.teachers.availability import resolve_model
from carv_3d.teachers.inputs import check_as_made, check_samples, placement
from carv_3d.teachers.loading import can_offload, choose_device, choose_dtype, load_parts, offload_to_cpu
from carv_3d.teachers.model_config import check_prediction_type


class Prediction(Brief):
    """A model with a schedule and `predict(z_t, t, *condition)`, of a `prediction_type`, and what follows from that.

    z, z_t and eps are (N, C, h, w), t is (N,) integers, conditions are (N, ...); all of it is differentiable.
    """

    schedule: NoiseSchedule
    prediction_type: str
    predict: Any

    def eps_hat(self, z_t: Tensor, t: Tensor, /, *condition: Tensor) -> Tensor:
        """The noise that the prediction stands for: `NoiseSchedule.eps_from`.

        Args:
            z_t: (N, C, h, w).
            t: (N,) integers.
            *condition: what `predict` takes, (N, ...) each.

        Returns:
            (N, C, h, w) in z_t's dtype.
        """
        return self.schedule.eps_from(self.prediction_type, z_t, self.predict(z_t, t, *condition), t)

    def z_hat(self, z_t: Tensor, t: Tensor, /, *condition: Tensor) -> Tensor:
        """The clean latents that the prediction stands for.

        Args:
            z_t: (N, C, h, w).
            t: (N,) integers.
            *condition: what `predict` takes, (N, ...) each.

        Returns:
            (N, C, h, w).
        """
        return self.schedule.z_from(self.prediction_type, z_t, self.predict(z_t, t, *condition), t)

    def target(self, z: Tensor, eps: Tensor, t: Tensor, /) -> Tensor:
        """What `predict` is trained towards: `NoiseSchedule.target`.

        Args:
            z: (N, C, h, w), clean.
            eps: (N, C, h, w).
            t: (N,) integers.

        Returns:
            (N, C, h, w).
        """
        return self.schedule.target(self.prediction_type, z, eps, t)


class Denoiser(Prediction):
    """What of a teacher predicts noise. No torch module: nothing of it lands in a host's checkpoint or optimizer."""

    brief = ("name", "prediction_type", "dtype")

    def __init__(self, network: Any, schedule: NoiseSchedule, prediction_type: str = "epsilon", name: str = "") -> None:
        """A frozen network.

        Args:
            network: diffusers' UNet or transformer, put into eval mode without gradients.
            schedule: of the model's training.
            prediction_type: one that the schedule knows.
            name: for messages.

        Raises:
            CarvError: another prediction type.
        """
        self.network: Any = network.eval().requires_grad_(False)
        self.prediction_type = check_prediction_type(prediction_type, schedule, name)
        self.name = name
        parameters = list(network.parameters())
        numbers = [parameter for parameter in parameters if parameter.is_floating_point()]  # quantised ones are not
        self._placement = placement(network)
        self.device: torch.device = parameters[0].device
        self.dtype: torch.dtype = (numbers or parameters)[0].dtype
        self.schedule = schedule.to(self.device)

    @property
    def unet(self) -> Any:
        """The network, of a model that has a UNet."""
        return self.network

    def predict(self, z_t: Tensor, t: Tensor, text_emb: Tensor, *more: Tensor) -> Tensor:
        """What the network itself predicts, in z_t's dtype, for text (N, L, D); CarvError for another width.

        Args:
            z_t: (N, C, h, w).
            t: (N,) integers.
            text_emb: (N, L, D).
            *more: (N, ...) each, of teachers whose `conditions` take more than text.
        """
        own = self.schedule.times is None
        if own and self.schedule.continuous:
            raise CarvError(
                f"{self.name or 'this model'} was trained at whole timesteps alone, and its schedule is a "
                "ContinuousSchedule: give it a NoiseSchedule."
            )
        given, time = (z_t, t) if own else self.schedule.network_input(z_t, t)
        try:
            with torch.autocast(self.device.type, enabled=False):
                prediction = self.run_network(given.to(self.dtype), time, self.conditions(text_emb, *more))
        except FAILURES as error:
            refuse_arguments(Denoiser.predict, {"z_t": z_t, "t": t, "text_emb": text_emb}, error)
            check_samples(z_t, t, text_emb)
            check_as_made(self.network, self._placement, f"the network of {self.name or 'this teacher'}")
            raise
        if not isinstance(prediction, Tensor):
            raise CarvError(
                f"the network of {self.name or 'this teacher'} returned {described(prediction)} in place of a "
                "prediction; a hook on it must return what it is given."
            )
        return prediction.to(z_t.dtype)

    def run_network(self, given: Tensor, time: Tensor, conditions: dict[str, Any]) -> Tensor:
        """The network's own output.

        Args:
            given: (N, C, h, w) in its dtype.
            time: (N,) what it is given for t.
            conditions: the other arguments.

        Returns:
            (N, C, h, w).
        """
        prediction: Tensor = self.network(given, time, return_dict=False, **conditions)[0]
        return prediction

    def conditions(self, text_emb: Tensor) -> dict[str, Any]:
        """The network's keyword arguments for text (N, L, D). Raises CarvError for text of another width."""
        width = self.network.config.cross_attention_dim
        if isinstance(width, int):
            self.check_width(text_emb, width, "the prompt processor must name the same model as the guidance")
        return {"encoder_hidden_states": text_emb.to(self.dtype)}

    def check_width(self, text_emb: Tensor, width: int, fix: str) -> None:
        """Raises CarvError unless text (N, L, D) has the width D."""
        if text_emb.shape[-1] != width:
            raise CarvError(
                f"the text embeddings are {text_emb.shape[-1]} wide and {self.name or 'this model'} needs {width}: "
                f"{fix}."
            )


@packages("teachers")
@torch.inference_mode(False)
def load_denoiser(
    name_or_path: str,
    device: str | torch.device | None = None,
    half_precision: bool | None = None,
    channels_last: bool = False,
    attention_slicing: bool = False,
    cpu_offload: bool = False,
) -> Denoiser:
    """A Stable Diffusion model's UNet alone; arguments and what is raised as of `LatentDiffusionTeacher.load`."""
    folder = resolve_model(name_or_path)
    device = choose_device(device)
    parts = load_parts(folder, choose_dtype(device, half_precision), with_text=False, with_vae=False)
    offload = cpu_offload and can_offload(device)
    unet, schedule = parts["unet"] if offload else parts["unet"].to(device), parts["scheduler"]
    if channels_last:
        unet = unet.to(memory_format=torch.channels_last)
    if attention_slicing:
        unet.set_attention_slice(1)
    denoiser = Denoiser(unet, schedule, schedule.prediction_type, str(name_or_path))
    if offload:
        offload_to_cpu([unet], device)
        denoiser.device, denoiser.schedule = device, denoiser.schedule.to(device)
    return denoiser
