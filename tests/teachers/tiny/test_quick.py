import shutil

import pytest
import torch
from diffusers.models.upsampling import Upsample2D
from torch import nn

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError
from carv_3d.teachers.tiny import denoiser, quick
from carv_3d.teachers.tiny.tokens import LENGTH


def flat_gradient(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


class Small(nn.Module):
    """A network with the part that is kept out of the compiled graph."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.up = nn.Conv2d(4, 8, 3, padding=1), Upsample2D(8, use_conv=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(torch.tanh(self.before(x)))

    def gradient(self) -> torch.Tensor:
        self.zero_grad(set_to_none=True)
        x = torch.linspace(-1, 1, 2 * 4 * 4 * 4).view(2, 4, 4, 4)
        with torch.autocast("cpu", torch.bfloat16):
            self(x).float().square().mean().backward()
        return flat_gradient(self)


def test_precision_follows_the_processor_unless_it_is_named(monkeypatch) -> None:
    for here, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(quick, "_multiplies_bfloat16", lambda here=here: here)
        assert quick.choose_precision("auto") == expected
        assert (quick.choose_precision("fp32"), quick.choose_precision("bf16")) == ("fp32", "bf16")
    with pytest.raises(CarvError, match="--unet-precision is fp8: it is one of auto, bf16, fp32"):
        quick.choose_precision("fp8")


def test_half_products_leave_weights_result_and_gradient_what_they_are() -> None:
    schedule, found = NoiseSchedule.scaled_linear(), {}
    z, ids = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(1)), torch.arange(4 * LENGTH) % 30
    for half in (False, True):
        torch.manual_seed(0)
        model = denoiser.Denoiser(30, 0, 1, half=half)
        assert model(z, torch.full((4,), 500), ids.view(4, LENGTH)).dtype == torch.float32
        value = denoiser.loss(model, schedule, z, ids.view(4, LENGTH), torch.Generator().manual_seed(2))
        value.backward()
        found[half] = value.item(), flat_gradient(model)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert found[True][0] != found[False][0]  # the option is heeded
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-2)
    assert torch.cosine_similarity(found[True][1], found[False][1], dim=0) > 0.99


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_in_place_the_names_and_the_gradient_stay() -> None:
    module, said = Small(), []
    names, expected = list(module.state_dict()), module.gradient()
    assert quick.compile_in_place(module, module.gradient, said.append) is True
    assert list(module.state_dict()) == names
    assert not said
    torch.testing.assert_close(module.gradient(), expected, rtol=2e-2, atol=1e-3)


def test_a_compiled_network_with_another_gradient_is_given_up(monkeypatch) -> None:
    module, said = Small(), []
    own, given = module.gradient(), []

    def gradient() -> torch.Tensor:  # as if the first half came to nothing once compiled
        given.append(own.clone())
        if len(given) == 2:
            given[-1][: len(own) // 2] = 0
        return given[-1]

    assert quick.compile_in_place(module, gradient, said.append) is False
    assert module._compiled_call_impl is None
    assert len(said) == 1
    assert said[0].startswith("not compiled, so slower: the compiled network's gradient has a cosine of")


def test_no_compiler_costs_speed_only(monkeypatch) -> None:
    module, said = Small(), []
    expected = module.gradient()

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no C++ compiler\nmore of it")

    monkeypatch.setattr(module, "compile", broken)
    assert quick.compile_in_place(module, module.gradient, said.append) is False
    assert said == ["not compiled, so slower: no C++ compiler"]
    assert torch.equal(module.gradient(), expected)
