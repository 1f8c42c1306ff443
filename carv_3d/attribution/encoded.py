"""Images as latents: each encoded once, kept on the disk, with its caption embedded when it is asked for."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from carv_3d.attribution.images import Image, TrainingImages
from carv_3d.attribution.store import UNIT, RowStore
from carv_3d.io.files import claimed_part
from carv_3d.runs.checkpoint import module_fingerprint
from carv_3d.teachers.latent_diffusion import LatentDiffusionTeacher

CHUNK = UNIT  # images encoded together, always the same ones, so that resuming changes no bit
FLUSH_EVERY = 64  # chunks; what a power cut (no kill) may cost
PATIENCE = 0.2  # seconds between two looks at chunks that others are at
CAPTIONS = 512  # embedded captions that are remembered


class EncodedImages:
    """`LatentItems` of training images: the posterior's mode of each, and the embedding of its caption."""

    def __init__(
        self, images: TrainingImages, teacher: LatentDiffusionTeacher, folder: Path, earlier: Iterable[Path] = ()
    ) -> None:
        """folder: of the latents' store, which is refused where it was made with other images or another encoder.

        earlier: stores of other images, see `RowStore`.
        """
        self.images, self.teacher = images, teacher
        shape = (teacher.latent_channels, teacher.latent_size, teacher.latent_size)
        models = encoder_fingerprints(teacher)
        meta = {"items": images.fingerprint(), "vae": models[0]}
        keys = [images.digest(i) for i in range(len(images))]
        self.store = RowStore(folder, meta, len(images), shape, keys, earlier)
        self._models = models
        self._fingerprint = "-".join([meta["items"], *self._models])
        self._captions: OrderedDict[str, Tensor] = OrderedDict()

    def encode(self, show: Callable[[int, int], bool] | None = None, shard: int = 0, shards: int = 1) -> bool:
        """Encodes what a share needs and is missing; True when nothing of it is. show: as of FeatureMaker.fill.

        Of processes at work on one store, each takes chunks that no other is at, and waits for the last ones of others:
        a chunk is encoded once, and again by another where its process was killed.
        """
        n = len(self.images)
        needed = sorted({int(i) // CHUNK for i in self.store.pending(shard, shards)})
        first = len(needed) * shard // shards
        waiting = deque(needed[first:] + needed[:first])
        count = skipped = 0
        while waiting:
            chunk = waiting.popleft()
            index = range(chunk * CHUNK, min((chunk + 1) * CHUNK, n))
            with claimed_part(self.store.folder, chunk) as claimed:
                if claimed:
                    self._encode_chunk(index)
            if claimed:
                count, skipped = count + 1, 0
                if count % FLUSH_EVERY == 0:
                    self.store.flush()
            else:
                waiting.append(chunk)
                skipped += 1
                if skipped >= len(waiting):
                    time.sleep(PATIENCE)
            if show is not None and show(index[-1] + 1, n) and waiting:
                self.store.flush()
                return False
        self.store.flush()
        return True

    def _encode_chunk(self, index: range) -> None:
        """All of it, or nothing where another process has finished it."""
        missing = self.store.missing(index)
        if not missing:
            return
        latents = encode_images([self.images.image(i) for i in index], self.teacher)
        for i, row in zip(index, latents.cpu().numpy()):
            if i in missing:
                self.store.write(i, row.astype(np.float32))

    def __len__(self) -> int:
        return len(self.images)

    def key(self, index: int) -> str:
        """What the image's draws depend on; see `TrainingImages.key`."""
        return self.images.key(index)

    def latents(self, index: int) -> Tensor:
        """(C, h, w), float32, scaled."""
        return torch.from_numpy(self.store.read(index))

    def condition(self, index: int) -> Tensor:
        """The embedding (L, D) of its caption."""
        caption = self.images.caption(index)
        if caption not in self._captions:
            self._captions[caption] = embed(caption, self.teacher)
            if len(self._captions) > CAPTIONS:
                self._captions.popitem(last=False)
        return self._captions[caption]

    def row_keys(self) -> list[str]:
        """What the gradient of each image depends on besides the model and its options."""
        images = self.images
        parts = ((images.digest(i), images.key(i), images.caption(i)) for i in range(len(images)))
        return [hashlib.sha256("\0".join([*part, *self._models]).encode()).hexdigest()[:32] for part in parts]

    def fingerprint(self) -> str:
        """Changes with the images, the encoder and the text encoder."""
        return self._fingerprint


def encoder_fingerprints(teacher: LatentDiffusionTeacher) -> list[str]:
    """Of the image encoder, then of each text encoder."""
    text = [module_fingerprint(part, config=config) for part, config in teacher.text_parts]
    return [module_fingerprint(teacher.vae, config=dict(teacher.vae.config)), *text]


@torch.no_grad()
def encode_images(images: list[Image], teacher: LatentDiffusionTeacher) -> Tensor:
    """(N, C, h, w), the posterior's mode, of images (S, S, 3)."""
    x = torch.from_numpy(np.stack(images)).to(teacher.device).permute(0, 3, 1, 2).float() / 255
    return teacher.encode(x.contiguous(), sample=False)


def embed(caption: str, teacher: LatentDiffusionTeacher) -> Tensor:
    """(L, D) of a caption; the teacher forgets it again, so that memory does not grow with the captions."""
    row = teacher.text_embeddings([caption])[0]
    teacher.forget_texts()
    return row
