"""A run of a comparison: by its training time, scored at even points of it, to be stopped and resumed at any moment."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carv_3d.compare.reading import LABEL
from carv_3d.errors import CarvError
from carv_3d.evaluation.clip import ClipScore
from carv_3d.evaluation.truth import scoring_views
from carv_3d.generate.run import COLUMNS, N_VIEWS, SceneRun
from carv_3d.generate.trainer import TextTo3D
from carv_3d.io.files import make_folder, write_atomic
from carv_3d.io.structured import read_json
from carv_3d.io.tables import read_metrics, seconds_in_all
from carv_3d.runs.checkpoint import has_checkpoint
from carv_3d.runs.progress import Display

RESULT = "result.json"  # written last: a run that has one is done


@dataclass
class Length:
    """How long a run is: `seconds` of training time, or `steps` where that is given; scored `points` times.

    scheduled: whether its schedules are laid over the seconds, and not over `trainer.max_steps`. (A step's seconds
    change as a scene sharpens, so that no count of steps ends with the seconds.)
    """

    seconds: float | None
    steps: int | None
    points: int
    scheduled: bool = True

    @property
    def total(self) -> float:
        """In its own unit."""
        return float(self.seconds if self.seconds is not None else self.steps or 0)


class ScoredRun(SceneRun):
    """A `SceneRun` that is advanced in slices. `clock` counts its training time: evaluation and files apart."""

    columns = (*COLUMNS, "clip_score")
    damaged_fix = "delete that folder, and the same command makes the run again"

    def __init__(
        self, host: TextTo3D, folder: Path, display: Display, length: Length, clip: ClipScore | None = None
    ) -> None:
        super().__init__(host, folder, display, paced=False)
        self.length, self.clip = length, clip
        self.clock = 0.0

    @property
    def result(self) -> dict[str, Any] | None:
        """What the run came to, once it is done."""
        path = self.folder / RESULT
        return read_json(path, "delete it, and the run is finished again") if path.exists() else None

    @property
    def done(self) -> float:
        """How much of its length is behind it, in the length's unit."""
        return self.clock if self.length.seconds is not None else float(self.host.step)

    @property
    def finished(self) -> bool:
        """Whether its length is behind it."""
        return self.done >= self.length.total

    def begin(self, method: str) -> None:
        """Open the folder: begin in it, or resume the run in it at its last point."""
        make_folder(self.folder)
        write_atomic(self.folder / LABEL, json.dumps({"method": method}, ensure_ascii=False) + "\n")
        self.open(resume=has_checkpoint(self.checkpoint))
        rows = read_metrics(self.metrics)
        if not rows:
            self.append({"step": 0.0, "seconds": 0.0, "nfe": 0.0, "renders": 0.0} | self.scores())
            self.save()
        self.clock = seconds_in_all(rows)

    def misfit(self, sentence: str) -> None:
        """CarvError: the rows say how much of its budget the run has had."""
        raise CarvError(f"{sentence.partition('; ')[0]}; {self.damaged_fix}")

    def advance(self, slice_seconds: float) -> None:
        """Steps until the slice is used up, a point is reached (then it is scored and saved), or the run is done."""
        until = self.clock + slice_seconds
        while not self.finished and self.clock < until:
            point = self._points_passed()
            if self.length.seconds is not None and self.length.scheduled:
                self.host.progress = min(1.0, self.clock / self.length.seconds)
            row = self.host.train_step()
            self.clock += row["seconds"]
            due = self.finished or self._points_passed() > point
            if due:
                row |= self.scores()
            self.append(row)
            if due:
                self.save()
                return

    def pause(self) -> None:
        """Save where it stands, between two points, to be resumed from here."""
        if self.host.step != self.saved_step:
            self.save()

    def finish(self) -> None:
        """Images, mesh, and the result, which says that the run is done."""
        config = self.host.config
        self.write_preview(self._shots(N_VIEWS))
        note = ""
        try:
            self.export_mesh()
        except CarvError as error:
            note = str(error)
        scored = [row for row in read_metrics(self.metrics) if any(_known(row, name) for name in self._score_names)]
        last = {name: scored[-1][name] for name in self._score_names if scored and _known(scored[-1], name)}
        result = {"prompt": config.prompt, "seed": config.seed, "steps": self.host.step, "seconds": self.clock}
        write_atomic(self.folder / RESULT, json.dumps(result | last | ({"note": note} if note else {})) + "\n")

    def scores(self) -> dict[str, float]:
        """The classifier's scores, IoU and PSNR for carv-tiny's objects, CLIP's if it is there; of the same views."""
        rgb, opacity = scoring_views(self.host)
        scores = self.classifier.score(rgb) if self.classifier else {}
        if self.truth:
            scores |= self.truth.score(rgb, opacity)
        if self.clip:
            scores["clip_score"] = self.clip.score(rgb, self.host.config.prompt)
        return scores

    @property
    def _score_names(self) -> tuple[str, ...]:
        return ("iou", "psnr", "classifier_object", "classifier_color", "classifier_material", "clip_score")

    def _points_passed(self) -> int:
        return math.floor(self.done / self.length.total * self.length.points + 1e-9)


def _known(row: Mapping[str, float], name: str) -> bool:
    return math.isfinite(row.get(name, math.nan))
