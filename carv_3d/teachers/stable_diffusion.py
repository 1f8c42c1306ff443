"""Any diffusers Stable Diffusion model (1.x, 2.x, carv-tiny) as a frozen teacher.

Runs on diffusers 0.19 / transformers 4.28 and on diffusers 0.42 / transformers 5. All sizes come
from the model's own configs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError
from carv_3d.teachers.availability import resolve_model
from carv_3d.teachers.base import classifier_free_eps_hat
from carv_3d.teachers.loading import load_parts
from carv_3d.teachers.memory import can_offload, merge_tokens, offload_to_cpu

log = logging.getLogger(__name__)


class StableDiffusionTeacher:
    """A `carv_3d.teachers.base.Teacher` over a UNet, a VAE and a CLIP text encoder.

    It is no torch module on purpose: nothing of it lands in a host's checkpoint, optimizer or
    `train()` call. Parameters are frozen; gradients pass through `encode` and `decode` to their inputs.
    """

    def __init__(
        self,
        unet: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        schedule: NoiseSchedule,
        prediction_type: str = "epsilon",
        name: str = "",
    ) -> None:
        """Parts that are already on one device and in one dtype; `load` is the usual way in. Without text_encoder
        and tokenizer (None) it takes embeddings made elsewhere, and `text_embeddings` raises.

        Raises CarvError if the sizes of the parts do not fit, or the prediction type is unknown.
        """
        if prediction_type not in ("epsilon", "v_prediction"):
            raise CarvError(f"prediction_type is {prediction_type!r}, not epsilon or v_prediction.")
        self.unet: Any
        self.vae: Any
        self.text_encoder: Any
        self.unet, self.vae, self.text_encoder = (
            None if part is None else part.eval().requires_grad_(False) for part in (unet, vae, text_encoder)
        )
        self.tokenizer = tokenizer
        self.prediction_type = prediction_type
        self.name = name
        parameter = next(unet.parameters())
        self.device: torch.device = parameter.device
        self.dtype: torch.dtype = parameter.dtype
        self.schedule = schedule.to(self.device)
        self.vae_factor: int = 2 ** (len(vae.config.block_out_channels) - 1)
        self.latent_channels = int(vae.config.latent_channels)
        size = unet.config.sample_size
        if isinstance(size, (list, tuple)):
            if len(set(size)) != 1:
                raise CarvError(f"the UNet of {name or 'this model'} is not square (sample_size {size}).")
            size = size[0]
        self.latent_size = int(size)
        self.image_size = self.latent_size * self.vae_factor
        width = unet.config.cross_attention_dim if text_encoder is None else text_encoder.config.hidden_size
        if unet.config.cross_attention_dim != width:
            raise CarvError(
                f"the parts of {name or 'this model'} do not fit: its text encoder gives width {width}, "
                f"its UNet takes {unet.config.cross_attention_dim}."
            )
        self._scaling = float(getattr(vae.config, "scaling_factor", None) or 0.18215)
        self._shift = float(getattr(vae.config, "shift_factor", None) or 0.0)
        self.context_length = 0
        if text_encoder is not None:  # a tokenizer without a limit says 1e30
            longest = int(text_encoder.config.max_position_embeddings)
            self.context_length = min(int(tokenizer.model_max_length), longest)
        self._embeddings: dict[str, Tensor] = {}

    @classmethod
    def load(
        cls,
        name_or_path: str = "carv-tiny",
        device: str | torch.device | None = None,
        half_precision: bool | None = None,
        channels_last: bool = False,
        local_files_only: bool = False,
        cache_dir: str | None = None,
        with_text: bool = True,
        attention_slicing: bool = False,
        cpu_offload: bool = False,
        token_merging: dict[str, Any] | None = None,
    ) -> StableDiffusionTeacher:
        """Finds, checks and loads a model.

        name_or_path: "carv-tiny", a local diffusers folder, or a hub id.
        device: CUDA if there is one, unless named.
        half_precision: float16, on CUDA only; None takes it there. On the CPU it is float32, with a
            note in the log (float16 and bfloat16 are slower there).
        channels_last: the memory format of UNet and VAE; no gain was measured on the CPU.
        attention_slicing: attention in slices: less memory, slower.
        cpu_offload: parameters stay in the CPU's memory and visit the GPU layer by layer: least memory, much
            slower. CUDA only, with a note in the log elsewhere. Needs accelerate.
        token_merging: arguments of tomesd.apply_patch, {} for its defaults; None for none. Needs tomesd; it
            changes the prediction.
        with_text: False leaves the text encoder out, for hosts that bring their own embeddings.
        Raises CarvError, before anything is loaded, if the model is not to be had or not whole.
        """
        folder = resolve_model(name_or_path, local_files_only=local_files_only, cache_dir=cache_dir)
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = _choose_dtype(device, half_precision)
        parts = load_parts(folder, dtype, with_text)
        offload = cpu_offload and can_offload(device)
        for part in ("unet", "vae", "text_encoder") if with_text else ("unet", "vae"):
            parts[part] = parts[part] if offload else parts[part].to(device)
            if channels_last and part != "text_encoder":
                parts[part] = parts[part].to(memory_format=torch.channels_last)
        scheduler = parts.pop("scheduler")
        teacher = cls(
            schedule=NoiseSchedule(scheduler.alphas_cumprod.float()),
            prediction_type=scheduler.config.get("prediction_type", "epsilon"),
            name=str(name_or_path),
            **parts,
        )
        if attention_slicing:
            teacher.unet.set_attention_slice(1)
        if token_merging is not None:
            merge_tokens(teacher.unet, token_merging)
        if offload:
            offload_to_cpu([teacher.unet, teacher.vae, *([teacher.text_encoder] if with_text else [])], device)
            teacher.device, teacher.schedule = device, teacher.schedule.to(device)
        return teacher

    def encode(self, images: Tensor, generator: torch.Generator | None = None, sample: bool = True) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> scaled latents (B, C, H / factor, W / factor), in images' dtype.

        Differentiable in `images`. `sample` takes one posterior sample per picture from `generator`
        (the global one if None), else the posterior's mode. H and W are multiples of the VAE's factor
        (`image_size` is the size that the model was trained at); CarvError otherwise.
        """
        if images.dim() != 4 or images.shape[1] != 3 or any(n % self.vae_factor for n in images.shape[2:]):
            raise CarvError(
                f"encode takes pictures (B, 3, H, W) with sides that are multiples of {self.vae_factor}, "
                f"not {tuple(images.shape)}."
            )
        with torch.autocast(self.device.type, enabled=False):
            posterior = self.vae.encode(images.to(self.dtype) * 2 - 1).latent_dist
            z = posterior.sample(generator) if sample else posterior.mode()
        return ((z - self._shift) * self._scaling).to(images.dtype)

    def decode(self, latents: Tensor, clamp: bool = True) -> Tensor:
        """Scaled latents (B, C, h, w) -> pictures (B, 3, H, W) in [0, 1], in latents' dtype.

        Differentiable in `latents`; `clamp` cuts to [0, 1], where the gradient is zero outside.
        """
        with torch.autocast(self.device.type, enabled=False):
            pictures = self.vae.decode(latents.to(self.dtype) / self._scaling + self._shift).sample
        pictures = (pictures * 0.5 + 0.5).to(latents.dtype)
        return pictures.clamp(0, 1) if clamp else pictures

    @torch.no_grad()
    def text_embeddings(self, prompts: Sequence[str]) -> Tensor:
        """B prompts -> (B, L, D) in the model's dtype, each prompt encoded once and then remembered.

        L is the text encoder's own context length; what does not fit is cut off, with a note in the log.
        """
        if self.text_encoder is None:
            raise CarvError(f"{self.name or 'this teacher'} was loaded without its text encoder.")
        if isinstance(prompts, str):
            prompts = [prompts]
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._embeddings]
        if new:
            self._embeddings.update(zip(new, self._encode_text(new)))
        return torch.stack([self._embeddings[prompt] for prompt in prompts])

    def _encode_text(self, prompts: list[str]) -> Tensor:
        for prompt in prompts:
            length = len(self.tokenizer(prompt, truncation=False, verbose=False)["input_ids"])
            if length > self.context_length:
                log.warning("%r is cut off: %d tokens of %d.", prompt, length, self.context_length)
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.context_length,
            truncation=True,
            return_tensors="pt",
        )
        use_mask = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = tokens["attention_mask"].to(self.device) if use_mask else None
        with torch.autocast(self.device.type, enabled=False):
            output = self.text_encoder(tokens["input_ids"].to(self.device), attention_mask=mask)
        return output[0].to(self.dtype)

    def eps_hat(self, z_t: Tensor, t: Tensor, text_emb: Tensor) -> Tensor:
        """The model's noise prediction: z_t (N, C, h, w), t (N,) integers, text (N, L, D) -> (N, C, h, w).

        A v-prediction is turned into `eps = alpha_t v + sigma_t z_t`. Result in z_t's dtype.
        """
        with torch.autocast(self.device.type, enabled=False):
            prediction = self.unet(
                z_t.to(self.dtype), t, encoder_hidden_states=text_emb.to(self.dtype), return_dict=False
            )[0].to(z_t.dtype)
        if self.prediction_type == "epsilon":
            return prediction
        alpha, sigma = (f(t).to(z_t).view(-1, 1, 1, 1) for f in (self.schedule.alpha, self.schedule.sigma))
        return alpha * prediction + sigma * z_t

    def eps_hat_cfg(
        self,
        z_t: Tensor,
        t: Tensor,
        cond: Tensor,
        uncond: Tensor,
        guidance_scale: float,
        convention: str = "standard",
    ) -> Tensor:
        """Classifier-free guidance in one batch of 2N rows; see `base.classifier_free_eps_hat`."""
        return classifier_free_eps_hat(self, z_t, t, cond, uncond, guidance_scale, convention)


def _choose_dtype(device: torch.device, half_precision: bool | None) -> torch.dtype:
    if half_precision and device.type != "cuda":
        log.info("half precision is for CUDA; on %s the teacher runs in float32.", device.type)
    return torch.float16 if device.type == "cuda" and half_precision in (None, True) else torch.float32
