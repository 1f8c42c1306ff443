"""What `import carv_3d` gives: every public name, lazily, with types; and the names of before the packages."""

from __future__ import annotations

import importlib
import importlib.resources
import subprocess
import sys
import warnings

import pytest

import carv_3d
from carv_3d import moved


def test_every_name_is_there_and_shown() -> None:
    for name in carv_3d.__all__:
        value = getattr(carv_3d, name)
        assert getattr(value, "__doc__", None) or isinstance(value, str), name
        assert name in dir(carv_3d)
    assert not {name for name in dir(carv_3d) if not name.startswith("__")} - set(carv_3d.__all__)
    expected = ("SDSGuidance", "VSDGuidance", "StableDiffusionTeacher", "GaussianTeacher", "load_config", "sds_loss")
    assert set(expected) <= set(carv_3d.__all__)
    with pytest.raises(AttributeError, match="did you mean CarvEstimator"):
        carv_3d.CarvEstimater  # noqa: B018


def test_no_object_is_shown_by_its_address() -> None:
    for name in set(carv_3d.__all__) - {"Teacher"}:
        value = getattr(carv_3d, name)
        if isinstance(value, type):
            assert value.__repr__ is not object.__repr__, name


def test_the_import_alone_loads_neither_torch_nor_the_old_names() -> None:
    code = (
        "import sys, carv_3d; assert dir(carv_3d); "
        "print([m for m in ('torch', 'numpy', 'carv_3d.core', 'carv_3d.moved', 'omegaconf') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_types_are_shipped() -> None:
    assert importlib.resources.files("carv_3d").joinpath("py.typed").is_file()


# What the README and the threestudio extension of version 0.1 imported.
OLD = [
    "carv_3d.annealing:annealed",
    "carv_3d.attribution.pictures:FolderPictures",
    "carv_3d.config:load_config",
    "carv_3d.core.accounting:CostMeter",
    "carv_3d.core.accounting:ecm_interval",
    "carv_3d.core.accounting:total_variance",
    "carv_3d.core.allocation:best_measured",
    "carv_3d.core.costs:CostMeter",
    "carv_3d.files:locked",
    "carv_3d.guidance:GuidanceOptions",
    "carv_3d.guidance:SDSGuidance",
    "carv_3d.options:read_options",
    "carv_3d.previews:denoised_previews",
    "carv_3d.report:read_metrics",
    "carv_3d.report:write_report",
    "carv_3d.run:Run",
    "carv_3d.teachers.denoiser:load_denoiser",
    "carv_3d.teachers.lora_student:LoraStudent",
    "carv_3d.teachers.lora_student:check_pair",
    "carv_3d.teachers.sampling:sample_pictures",
    "carv_3d.teachers.tiny.judge:Judge",
    "carv_3d.teachers.tiny.vocabulary:COLORS",
    "carv_3d.teachers.tiny.train:train",
    "carv_3d.text_to_3d:TextTo3D",
    "carv_3d.view_text:view_text",
    "carv_3d.views:view_phrase",
    "carv_3d.vsd:VSDGuidance",
    "carv_3d.vsd:VSDOptions",
]


@pytest.mark.parametrize("old", OLD)
def test_old_names_still_work(old: str) -> None:
    module, _, name = old.partition(":")
    for loaded in [m for m in sys.modules if isinstance(sys.modules[m], moved.Moved)]:
        del sys.modules[loaded]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        value = getattr(importlib.import_module(module), name)
    assert value is not None
    warned = [w for w in said if "the old name goes" in str(w.message)]
    kept = module in ("carv_3d.guidance", "carv_3d.core.allocation", "carv_3d.core.costs", "carv_3d.teachers.denoiser")
    assert bool(warned) is not kept
    assert all(w.category is DeprecationWarning for w in warned)


def test_the_warning_says_the_new_name_and_where_the_old_one_stands() -> None:
    sys.modules.pop("carv_3d.vsd", None)
    with pytest.warns(DeprecationWarning, match=r"carv_3d.vsd is now carv_3d.guidance.vsd and .*vsd_options") as said:
        from carv_3d.vsd import VSDOptions
    assert said[0].filename == __file__
    assert VSDOptions is carv_3d.VSDOptions
    with pytest.warns(DeprecationWarning, match=r"config.load_config is now carv_3d.generate.config.load") as said:
        from carv_3d.config import load_config
    assert said[0].filename == __file__
    assert load_config is carv_3d.load_config


@pytest.mark.filterwarnings("ignore:.*the old name goes")
def test_what_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"carv_3d\.nonsense"):
        importlib.import_module("carv_3d.nonsense")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("carv_3d.teachers.tiny.nonsense")
    with pytest.raises(ImportError, match="nonsense"):
        from carv_3d.config import nonsense  # noqa: F401


@pytest.mark.parametrize("old", sorted(moved.MODULES))
def test_every_old_module_has_a_home(old: str) -> None:
    for new in moved.MODULES[old].split():
        assert importlib.util.find_spec(f"carv_3d.{new}") is not None


def test_a_console_script_of_an_older_installation_runs() -> None:
    code = "import sys; sys.argv = ['carv', '--version']; from carv_3d.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["carv_3d", carv_3d.__version__]
