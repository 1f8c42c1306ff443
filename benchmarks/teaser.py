"""The moving image of the README: turntables of some assets side by side, docs/teaser.gif.

    ./install.sh python benchmarks/teaser.py [--work outputs/teaser] [--out docs/teaser.gif]

Each asset is one `carv generate PROMPT` with the default settings. A run that is there is not made again.
"""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from bench import run_script, script_parser
from PIL import Image

from carv_3d.config.request import GenerateRequest
from carv_3d.errors import CarvError
from carv_3d.generate.run import generate
from carv_3d.io.files import slug, write_via

PROMPTS = (
    "a red mug", "a green tree", "a yellow lighthouse", "a turquoise goblet", "a gray rocket", "a green lamp",
)  # fmt: skip
SIDE = 144  # pixels of an asset
FRAMES = 40  # of the turn
MILLISECONDS = 80  # of a frame


def turntable(folder: Path) -> np.ndarray:
    """FRAMES images (F, SIDE, SIDE, 3) of a run's turntable."""
    frames = imageio.imread(folder / "turntable.mp4")
    chosen = frames[np.arange(FRAMES) * len(frames) // FRAMES]
    return np.stack([np.asarray(Image.fromarray(x).resize((SIDE, SIDE), Image.Resampling.LANCZOS)) for x in chosen])


def main() -> int:
    parser = script_parser(__doc__)
    parser.add_argument("--work", type=Path, default=Path("outputs/teaser"))
    parser.add_argument("--out", type=Path, default=Path("docs/teaser.gif"))
    o = parser.parse_args()
    folders = [o.work / slug(prompt) for prompt in PROMPTS]
    for prompt, folder in zip(PROMPTS, folders):
        if not (folder / "turntable.mp4").exists():
            status = generate(GenerateRequest(prompt=prompt, out=folder, resume=folder.exists()))
            if status:
                raise CarvError("stopped; the same command resumes it")
    side_by_side = np.concatenate([turntable(folder) for folder in folders], axis=2)
    palette = Image.fromarray(np.concatenate(side_by_side[:: FRAMES // 4])).quantize(128)  # one for all, or colors jump
    images = [Image.fromarray(x).quantize(palette=palette, dither=Image.Dither.NONE) for x in side_by_side]
    write_via(
        o.out,
        lambda path: images[0].save(
            path, format="GIF", save_all=True, append_images=images[1:], duration=MILLISECONDS, loop=0, optimize=True
        ),
    )
    print(f"{o.out}: {o.out.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    run_script(main)
