"""A timed teacher gives what the teacher gives, and says what it took."""

from __future__ import annotations

import torch

from carv_3d.core.costs import CostMeter
from carv_3d.teachers.base import Teacher
from carv_3d.teachers.gaussian import GaussianTeacher
from carv_3d.teachers.timed import TimedTeacher

MEANS = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def test_each_call_is_a_phase_and_samples_of_the_unet_are_counted() -> None:
    plain, meter = GaussianTeacher(MEANS, image_size=4, names=["mug", "cup"]), CostMeter()
    teacher = TimedTeacher(plain, meter)
    assert isinstance(teacher, Teacher)
    for name in ("schedule", "latent_channels", "latent_size", "image_size", "device", "dtype", "names"):
        assert getattr(teacher, name) is getattr(plain, name)
    images = torch.rand(2, 3, 4, 4)
    text = teacher.text_embeddings(["mug", ""])
    assert torch.equal(text, plain.text_embeddings(["mug", ""]))
    assert meter.seconds == {}
    z = teacher.encode(images, generator=torch.Generator(), sample=True)
    assert set(meter.seconds) == {"encode"}
    assert torch.equal(z, plain.encode(images))
    assert all(map(torch.equal, teacher.posterior(images), plain.posterior(images)))
    assert set(meter.seconds) == {"encode"}
    assert torch.equal(teacher.decode(z, clamp=False), plain.decode(z, clamp=False))
    assert set(meter.seconds) == {"encode", "decode"}
    t = torch.tensor([30, 900])
    assert torch.equal(teacher.eps_hat(z, t, text), plain.eps_hat(z, t, text))
    assert set(meter.seconds) == {"encode", "decode", "denoise"}
    assert meter.counts == {"nfe": 2, "renders": 0}
