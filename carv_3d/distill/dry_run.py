"""`carv distill --dry-run`: settings, model, time and memory of a run, measured; nothing is written."""

from __future__ import annotations

from carv_3d.core.batching import out_of_memory_as
from carv_3d.distill.command import check_prompts, load_teacher, too_large
from carv_3d.distill.loop import Distillation
from carv_3d.distill.request import DistillRequest, resolve
from carv_3d.io.files import check_writable
from carv_3d.runs.dry_run import print_costs


def dry_run(request: DistillRequest) -> int:
    """Print settings, and the measured time and memory of a run; write nothing."""
    settings, folder = resolve(request)
    prompts = check_prompts(settings)
    check_writable(folder)
    print(settings.to_yaml(), end="")
    print(f"# folder: {folder}")
    with out_of_memory_as(too_large(settings)):
        one = Distillation(load_teacher(settings), settings.options, prompts)
        print_costs(one, "generator", one.generator, one.device, settings.options.steps, lambda: "and the previews")
    return 0
