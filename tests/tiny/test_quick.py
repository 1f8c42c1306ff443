import copy
import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.upsampling import Upsample2D
from torch import nn

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.tiny import denoiser, quick
from carv_3d.tiny.tokens import LENGTH

needs_compile = pytest.mark.skipif(not hasattr(torch, "compiler"), reason="needs torch 2.1")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Graphs are traced and cut as by any compiler, and run without one unless the test names it; returns its name."""
    name, compile_module = getattr(request, "param", "aot_eager"), nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compile_module(self, backend=name))
    torch._dynamo.reset()
    return name


class Small(nn.Module):
    """A network with the part that is kept out of the compiled graph."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.up = nn.Conv2d(4, 8, 3, padding=1), Upsample2D(8, use_conv=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(torch.tanh(self.before(x)))

    def loss(self) -> torch.Tensor:
        x = torch.linspace(-1, 1, 2 * 4 * 4 * 4).view(2, 4, 4, 4)
        with torch.autocast("cpu", torch.bfloat16):
            return self(x).float().square().mean()

    def gradient(self) -> list[torch.Tensor]:
        return quick.loss_gradient(self, self.loss)


def test_precision_follows_the_processor_unless_it_is_named(monkeypatch) -> None:
    for here, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(quick, "_multiplies_bfloat16", lambda here=here: here)
        assert quick.choose_precision("auto") == expected
        assert (quick.choose_precision("fp32"), quick.choose_precision("bf16")) == ("fp32", "bf16")


def test_bfloat16_products_leave_weights_result_and_gradient_what_they_are(monkeypatch) -> None:
    monkeypatch.setitem(denoiser.UNET, "block_out_channels", (32, 32, 64))
    schedule, outputs = NoiseSchedule.scaled_linear(), {}
    z, ids = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(4 * LENGTH) % 30
    for autocast in (False, True):
        torch.manual_seed(0)
        model = denoiser.Denoiser(30, 0, 1, autocast=autocast)
        assert model(z, torch.full((4,), 500), ids.view(4, LENGTH)).dtype == torch.float32
        value = denoiser.loss(model, schedule, z, ids.view(4, LENGTH), torch.Generator().manual_seed(2))
        gradient = quick.loss_gradient(model, lambda value=value: value)
        outputs[autocast] = value.item(), torch.cat([g.flatten() for g in gradient])
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert outputs[True][0] != outputs[False][0]  # the option is heeded
    assert outputs[True][0] == pytest.approx(outputs[False][0], rel=1e-2)
    assert torch.cosine_similarity(outputs[True][1], outputs[False][1], dim=0) > 0.99


@needs_compile
@pytest.mark.parametrize(
    "traced", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, needs_compiler])], indirect=True
)
def test_compiled_in_place_the_names_and_the_gradient_stay(traced: str) -> None:
    module, said = Small(), []
    names, expected = list(module.state_dict()), module.gradient()
    assert quick.compile_in_place(module, module.gradient, said.append) is True
    assert module._compiled_call_impl is not None
    assert list(module.state_dict()) == names
    assert not said
    for actual, own in zip(module.gradient(), expected):
        torch.testing.assert_close(actual, own, rtol=2e-2, atol=1e-3)


@needs_compile
def test_a_copy_made_plain_has_parts_of_its_own(traced: str) -> None:
    module = Small()
    assert quick.compile_in_place(module, module.gradient, lambda m: None)
    twin = copy.deepcopy(module)
    quick.plain(twin)
    with torch.no_grad():
        for p in twin.up.parameters():
            p.zero_()
    x = torch.ones(1, 4, 4, 4)
    assert twin(x).abs().max() == 0
    assert module(x).abs().max() > 0


@needs_compile
def test_a_compiled_network_in_which_one_weight_lost_its_gradient_is_given_up(traced: str) -> None:
    module, said, calls = Small(), [], []

    def gradient() -> list[torch.Tensor]:
        calls.append(module.gradient())
        if len(calls) == 2:  # once compiled, the least of them is gone
            min(calls[-1], key=lambda g: float(g.norm())).zero_()
        return calls[-1]

    assert quick.compile_in_place(module, gradient, said.append) is False
    assert said == ["not compiled, so slower: compiled, 1 of 4 weights lose their gradient"]
    assert module._compiled_call_impl is None
    assert "forward" not in module.up.__dict__


def test_gradients_differ_by_more_than_rounding_only() -> None:
    generator = torch.Generator().manual_seed(0)
    expected = [torch.randn(50, generator=generator), 1e-8 * torch.randn(5, generator=generator)]
    assert quick.differs([g.bfloat16().float() for g in expected], expected) == ""
    assert quick.differs([expected[0], torch.zeros(5)], expected) == ""  # nothing but rounding, lost
    turned = [expected[0] + torch.randn(50, generator=generator), expected[1]]
    assert "has a cosine of 0." in quick.differs(turned, expected)


def test_no_compiler_costs_speed_only(monkeypatch) -> None:
    module, said = Small(), []
    expected = module.gradient()

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no C++ compiler\nmore of it")

    monkeypatch.setattr(module, "compile", broken, raising=False)
    monkeypatch.setattr(torch, "compiler", SimpleNamespace(disable=lambda f: f))
    assert quick.compile_in_place(module, module.gradient, said.append) is False
    assert said == ["not compiled, so slower: no C++ compiler"]
    assert all(map(torch.equal, module.gradient(), expected))
