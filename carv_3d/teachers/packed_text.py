"""What teachers share whose text comes from several encoders, or with a mask: it travels as one tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError
from carv_3d.teachers.latent_diffusion import LatentDiffusionTeacher
from carv_3d.teachers.model_folder import read_json
from carv_3d.teachers.tokens import text_config, tokenize
from carv_3d.teachers.xl_text import unpack

SomeTeacher = TypeVar("SomeTeacher", bound="PackedTextTeacher")


class PackedTextTeacher(LatentDiffusionTeacher):
    """A `carv_3d.teachers.base.Teacher` whose text is packed (B, L + 1, max(D, P)), see `xl_text.pack`.

    Of a network that learned the variance as well, the prediction alone is kept.
    """

    def __init__(
        self, network: Any, vae: Any, schedule: NoiseSchedule, prediction_type: str = "epsilon", name: str = "",
        encoders: dict[str, Any] | None = None, tokenizers: dict[str, Any] | None = None, pipeline: str = "",
    ) -> None:  # fmt: skip
        """Parts that are already on one device; `load` is the usual way in.

        Args:
            network: diffusers' transformer or UNet.
            vae: diffusers' autoencoder.
            schedule: of the model's training.
            prediction_type: one that the schedule knows.
            name: for messages.
            encoders: by part ("text_encoder"); none for embeddings made elsewhere.
            tokenizers: of each, by part ("tokenizer").
            pipeline: the class that model_index.json names.

        Raises:
            CarvError: the sizes of the parts do not fit, or the prediction type is not the schedule's.
        """
        super().__init__(network, vae, schedule, prediction_type, name)
        given = {part: encoder for part, encoder in (encoders or {}).items() if encoder is not None}
        self.encoders = {part: encoder.eval().requires_grad_(False) for part, encoder in given.items()}
        self.tokenizers = tokenizers or {}
        self.pipeline = pipeline

    @classmethod
    def _from_parts(cls: type[SomeTeacher], folder: Path, parts: dict[str, Any], **known: Any) -> SomeTeacher:
        encoders = {part: parts[part] for part in cls.family.text_encoders}
        tokenizers = {part: parts[part] for part in cls.family.tokenizers}
        pipeline = str(read_json(folder / "model_index.json").get("_class_name", ""))
        return cls(
            parts[cls.family.network], parts.get("vae"), **known,
            encoders=encoders, tokenizers=tokenizers, pipeline=pipeline,
        )  # fmt: skip

    @property
    def text_parts(self) -> list[tuple[Any, dict[str, Any]]]:
        """Each text encoder that there is, with its configuration and words."""
        return [(encoder, text_config(encoder, self._tokenizer(part))) for part, encoder in self.encoders.items()]

    @property
    def context_length(self) -> int:
        """L, the tokens that the text encoder with the longest text reads."""
        raise NotImplementedError

    @property
    def _tokenizers(self) -> list[tuple[Any, int]]:
        # what another encoder cuts off is still read by the last
        return [(self._tokenizer(part), self.context_length) for part in list(self.encoders)[-1:]]

    def run_network(self, given: Tensor, time: Tensor, conditions: dict[str, Any]) -> Tensor:
        """The network's own output, without a learned variance: (N, C, h, w), (N,) -> (N, C, h, w)."""
        prediction: Tensor = self.network(hidden_states=given, timestep=time, return_dict=False, **conditions)[0]
        return prediction[:, : given.shape[1]]

    def unpacked(self, text_emb: Tensor, text_width: int, second_width: int) -> tuple[Tensor, Tensor]:
        """The two halves of packed text (N, L + 1, max(D, P)), in the network's dtype.

        Args:
            text_emb: as `text_embeddings` makes it.
            text_width: D.
            second_width: P, of the pooled text or the mask.

        Returns:
            (N, L, D) and (N, P).

        Raises:
            CarvError: text of another model.
        """
        self.check_width(text_emb, max(text_width, second_width), "make them by its own text_embeddings")
        return unpack(text_emb.to(self.dtype), text_width, second_width)

    def states(
        self, part: str, prompts: list[str], length: int, masked: bool = False, **more: Any
    ) -> tuple[Any, Tensor]:
        """What one text encoder says.

        Args:
            part: "text_encoder", "text_encoder_2", ...
            prompts: B of them; what is longer than `length` tokens is cut off, with a note in the log.
            length: L, to which they are padded.
            masked: whether the encoder is shown which tokens are padding.
            **more: of the encoder's call.

        Returns:
            The encoder's output, and the mask (B, L), 1 at tokens and 0 at padding.

        Raises:
            CarvError: the teacher has no text encoder.
        """
        if part not in self.encoders:
            raise CarvError(f"{self.name or 'this teacher'} was loaded without its text encoders.")
        return text_states(self.encoders[part], self._tokenizer(part), prompts, length, self.device, masked, **more)

    def _tokenizer(self, part: str) -> Any:
        return self.tokenizers[part.replace("text_encoder", "tokenizer")]


def text_states(
    encoder: Any, tokenizer: Any, prompts: list[str], length: int, device: torch.device, masked: bool = False,
    **more: Any,
) -> tuple[Any, Tensor]:  # fmt: skip
    """What a text encoder on a device says, see `PackedTextTeacher.states`: its output, and the mask (B, L)."""
    tokens = tokenize(tokenizer, prompts, length)
    mask = tokens["attention_mask"].to(device)
    if masked:
        more["attention_mask"] = mask
    with torch.autocast(device.type, enabled=False):
        return encoder(tokens["input_ids"].to(device), **more), mask
