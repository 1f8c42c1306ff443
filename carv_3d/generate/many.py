"""`carv generate --prompts FILE`: a run of each prompt in a folder of its own, and a gallery of them.

The same command again does what is left: runs that are done stay, one that was stopped is resumed, new lines are begun.
"""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from carv_3d.config.request import GenerateRequest, ManyOptions, TextOptions
from carv_3d.core.batching import out_of_memory_as
from carv_3d.errors import CarvError
from carv_3d.generate.config import Config, find_config, load_config
from carv_3d.generate.request import resolve
from carv_3d.generate.run import ALL_TOO_LARGE, SceneRun
from carv_3d.generate.teachers import Teachers, process_teachers
from carv_3d.generate.trainer import TextTo3D, check_prompt
from carv_3d.io.files import claimed, make_folder, slug, write_atomic
from carv_3d.io.structured import read_prompts
from carv_3d.report.gallery import Card, render_gallery, thumbnail
from carv_3d.runs.listing import read_summary
from carv_3d.runs.loggers import check_logger
from carv_3d.runs.names import CONFIG
from carv_3d.runs.progress import Display
from carv_3d.runs.ray_tasks import Tasks, check_engine, run_on_ray

MOST_PROMPTS = 1000
GALLERY = "gallery.html"
RESUMED = "each run is saved, and the same command resumes it"


@dataclass(frozen=True)
class Planned:
    """One run that is to be made: what it was asked for, and what follows from that."""

    request: GenerateRequest
    config: Config
    folder: Path

    @property
    def done(self) -> bool:
        """Whether its folder holds everything, after as many steps as it has now."""
        if not (self.folder / CONFIG).exists():
            return False
        summary = read_summary(self.folder)
        return summary.state == "done" and summary.step >= self.config.trainer.max_steps


def generate_many(request: GenerateRequest, many: ManyOptions) -> int:
    """Make the runs that are left, then the gallery; returns 0, or 128 + the number of the signal that stopped it.

    Args:
        request: of all runs; its prompt is empty, its `out` the folder above theirs.
        many: the file of prompts, and where the runs are made.

    Raises:
        CarvError: before any work, for a prompt or an option that no run could have; at the end, where a run failed.
    """
    display = Display()
    check_engine(many)
    path = Path(many.prompts or "")
    out = request.out or Path("outputs") / slug(path.stem)
    plans = plan(request, path, out)
    left = [p for p in plans if not p.done]
    display.say(f"{len(plans)} prompts, {len(plans) - len(left)} of them done -> {out}")
    make_folder(out)
    failed: dict[str, str] = {}
    gallery = Gallery(out, path.stem, plans, failed)
    if many.engine == "ray" and left:
        work = functools.partial(_ray_run, _everywhere(request))
        tasks = Tasks(work, [p.config.prompt for p in left], len(plans) - len(left), "prompts", RESUMED)
        number = run_on_ray(tasks, out, display, many)
    else:
        number = _run_here(left, failed, display, gallery)
    gallery.write(left)
    if number:
        display.say("Stopped. The same command continues.")
        return 128 + number
    failed |= {p.config.prompt: "not done" for p in left if not p.done and p.config.prompt not in failed}
    if failed:
        prompt, reason = next(iter(failed.items()))
        raise CarvError(f"{len(failed)} of {len(plans)} prompts failed, the first is {prompt!r}: {reason}")
    display.say(f"Done: open {out / GALLERY}")
    return 0


def plan(request: GenerateRequest, path: Path, out: Path) -> list[Planned]:
    """The runs of a file's prompts, each once; CarvError for the first that no run could have, with its prompt."""
    prompts = list(dict.fromkeys(TextOptions(prompt=line).prompt for line in read_prompts(path)))
    if len(prompts) > MOST_PROMPTS:
        raise CarvError(f"{path} holds {len(prompts):,} prompts; one command makes {MOST_PROMPTS:,} at most")
    plans = []
    for prompt in prompts:
        try:
            plans.append(_planned(request, prompt, out))
        except CarvError as error:
            raise CarvError(f"{path}, {prompt!r}: {error}") from error
    return plans


def _planned(request: GenerateRequest, prompt: str, out: Path) -> Planned:
    folder = _folder(request, prompt, out)
    own = replace(request, prompt=prompt, out=folder, resume=(folder / CONFIG).exists())
    config, _ = resolve(own)
    check_prompt(config)
    check_logger(config.logger)
    return Planned(own, config, folder)


def _folder(request: GenerateRequest, prompt: str, out: Path) -> Path:
    """Of a prompt's run of the seed that is asked for, whether as --seed or as seed=N."""
    seed = request.seed
    if seed is None:
        seed = load_config(overrides=[word for word in request.overrides if word.partition("=")[0] == "seed"]).seed
    names = [run_name(form, seed) for form in (prompt, unicodedata.normalize("NFD", prompt))]  # the second: of old runs
    return next((out / name for name in names if (out / name / CONFIG).exists()), out / names[0])


def run_name(prompt: str, seed: int | None) -> str:
    """The folder of a prompt's run: it does not depend on where the prompt stands in the file."""
    digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    return f"{slug(prompt, 40)}-{digest}" + (f"-{seed}" if seed else "")


def _run_here(left: list[Planned], failed: dict[str, str], display: Display, gallery: Gallery) -> int:
    """One after the other; what a run fails of is kept in `failed`. Returns what stopped it, or 0."""
    teachers = Teachers()
    for number, planned in enumerate(left, 1):
        display.say(f'{number}/{len(left)}: "{planned.config.prompt}" -> {planned.folder}')
        try:
            status = make_run(planned, teachers, display)
        except CarvError as error:
            failed[planned.config.prompt] = str(error)
            display.say(f"Failed: {error}")
            continue
        if status:
            return status - 128
        gallery.write([planned])
    return 0


def make_run(planned: Planned, teachers: Teachers, display: Display) -> int:
    """One run, begun or resumed; its status as `Run.complete` has it."""
    with claimed(planned.folder):
        with display.status("loading the model"), out_of_memory_as(ALL_TOO_LARGE):
            host = TextTo3D(planned.config, teachers.load(planned.config), log=display.say)
        return SceneRun(host, planned.folder, display).complete(planned.request.resume)


def _everywhere(request: GenerateRequest) -> GenerateRequest:
    """The request without a path that depends on the working directory, which a worker may not share."""
    if request.config is None or not (path := find_config(request.config)).exists():
        return request
    return replace(request, config=path.resolve())


def _ray_run(request: GenerateRequest, out: Path, prompt: str, display: Display) -> dict[str, float]:
    """One prompt on a worker of Ray; a run that fails is said, and the others are made."""
    quiet = Display(quiet=True)
    try:
        planned = _planned(request, prompt, out)
        make_run(planned, process_teachers(), quiet)
    except CarvError as error:
        display.say(f"Failed: {prompt!r}: {error}")
    return {}


class Gallery:
    """OUT/gallery.html: the card of a run is made at the beginning, and again when it has ended."""

    def __init__(self, out: Path, title: str, plans: Sequence[Planned], failed: Mapping[str, str]) -> None:
        """failed: prompt -> why its run failed, as it is when a card is made."""
        self._path, self._title, self._failed = out / GALLERY, title, failed
        self._cards = {planned.folder: self._card(planned) for planned in plans}

    def write(self, ended: Sequence[Planned] = ()) -> None:
        """Write the page, with new cards of the runs that have ended."""
        self._cards |= {planned.folder: self._card(planned) for planned in ended}
        write_atomic(self._path, render_gallery(self._title, list(self._cards.values())))

    def _card(self, planned: Planned) -> Card:
        folder, prompt = planned.folder, planned.config.prompt
        summary = read_summary(folder) if (folder / CONFIG).exists() else None
        words = "not begun" if summary is None else summary.score if summary.state == "done" else summary.state
        image, done = thumbnail(folder / "preview.png"), (folder / "report.html").exists()
        return Card(prompt, folder.name, self._failed.get(prompt, words), image, done)
