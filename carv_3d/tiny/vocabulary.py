"""What carv-tiny was taught to read: objects, colors, materials, views, and the wording around them.

Pure data and string work: no torch, no numba, so that a prompt is checked before anything is loaded.
"""

from __future__ import annotations

import difflib
import hashlib
import random
import re

from carv_3d.errors import CarvError
from carv_3d.scenes.view_phrases import COARSE_PHRASES, FINE_PHRASES, view_phrase

# object -> the words for it; the first is its own, and the one that captions use most
OBJECT_WORDS = """
mug, cup, coffee mug
teapot, kettle
bottle, flask
goblet, chalice
vase, urn
bowl, basin
bucket, pail
chair, seat
table, desk
sofa, couch
bed
lamp, table lamp
candle
car, automobile
bus, coach
truck, lorry
airplane, plane, aeroplane
rocket, spaceship
sailboat, boat, ship
house, cottage, home
castle, fortress
lighthouse, beacon
tree
cactus
mushroom, toadstool
snowman
robot, android
bear, teddy bear, teddy
rabbit, bunny
dog, puppy
duck, rubber duck
fish
hat, fedora
apple
pear
donut, doughnut
hammer, mallet
guitar
camera
crown
"""
OBJECTS: dict[str, tuple[str, ...]] = {
    words.split(", ")[0]: tuple(words.split(", ")) for words in OBJECT_WORDS.split("\n")[1:-1]
}

# color -> albedo
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.82, 0.09, 0.09), "orange": (0.96, 0.49, 0.06), "yellow": (0.96, 0.85, 0.12),
    "green": (0.12, 0.58, 0.17), "turquoise": (0.10, 0.74, 0.72), "blue": (0.11, 0.25, 0.82),
    "purple": (0.50, 0.15, 0.66), "pink": (0.98, 0.55, 0.74), "brown": (0.42, 0.23, 0.10),
    "black": (0.09, 0.09, 0.10), "white": (0.95, 0.95, 0.94), "gray": (0.50, 0.51, 0.53),
}  # fmt: skip
COLOR_WORDS: dict[str, tuple[str, ...]] = {
    **{c: (c,) for c in COLORS},
    "turquoise": ("turquoise", "teal", "cyan"),
    "purple": ("purple", "violet"),
    "gray": ("gray", "grey"),
    "red": ("red", "scarlet"),
    "blue": ("blue", "navy"),
}

MATERIALS = ("plain", "striped", "spotted")
MATERIAL_WORDS = {"plain": ("", "plain"), "striped": ("striped", "stripy"), "spotted": ("spotted", "dotted")}
MATERIAL_NOUNS = {"plain": (), "striped": ("stripes",), "spotted": ("spots", "dots", "polka dots")}  # "with ..."

LONGEST = 18  # words and commas of a caption that reach the UNet; the tokens after them are the layout's
VIEW_ROOM = 4  # of these, for ", back left view"

# Every word here is taught: check_prompt accepts no other.
TEMPLATES = (
    "{x}", "a {x}", "a {x}", "a {x}", "a photo of a {x}", "a 3d model of a {x}", "the {x}", "a picture of a {x}",
    "a rendering of a {x}", "one small {x}", "a big {x}", "a little {x}", "a nice {x}", "a beautiful {x}", "my {x}",
    "this {x}", "an image of a {x}", "a render of a single {x}", "a high quality photo of a {x}",
    "a dslr photo of a {x}",
)  # fmt: skip


def held_out_combinations() -> frozenset[tuple[str, str]]:
    """The tenth of the object–color combinations that training never shows, spread evenly: 48 of 480."""
    names, colors = sorted(OBJECTS), sorted(COLORS)
    order = sorted(names, key=lambda n: hashlib.sha256(n.encode()).hexdigest())
    combinations = set()
    for i, name in enumerate(order):
        combinations.add((name, colors[i % 12]))
        if i % 5 == 0:
            combinations.add((name, colors[(i + 5) % 12]))
    return frozenset(combinations)


def caption(rng: random.Random, obj: str, color: str, material: str, elevation: float, azimuth: float) -> str:
    """A caption in natural wording, with synonyms, half of the time without a word for a plain material.

    Few are in threestudio's four coarse view phrases: two of them share their words with a sector half as wide.
    """
    noun = OBJECTS[obj][0] if rng.random() < 0.7 else rng.choice(OBJECTS[obj])
    tint = COLOR_WORDS[color][0] if rng.random() < 0.8 else rng.choice(COLOR_WORDS[color])
    if MATERIAL_NOUNS[material] and rng.random() < 0.3:
        phrase = f"{tint} {noun} with {rng.choice(MATERIAL_NOUNS[material])}"
    else:
        pattern = rng.choice(MATERIAL_WORDS[material])
        words = (pattern, tint, noun) if rng.random() < 0.3 else (tint, pattern, noun)
        phrase = " ".join(w for w in words if w)
    text = rng.choice(TEMPLATES).format(x=phrase)
    text = re.sub(r"\ba (?=[aeiou])", "an ", text)
    kind = rng.random()
    if kind < 0.08:
        return text
    return f"{text}, {view_phrase(elevation, azimuth, fine=kind < 0.94)}"


def all_words() -> list[str]:
    """Every word the tokenizer holds as one token, sorted."""
    text = " ".join([
        *(w for ws in OBJECTS.values() for w in ws), *(w for ws in COLOR_WORDS.values() for w in ws),
        *(w for ws in MATERIAL_WORDS.values() for w in ws), *(w for ws in MATERIAL_NOUNS.values() for w in ws),
        *TEMPLATES, "with an", *FINE_PHRASES, *COARSE_PHRASES,
    ])  # fmt: skip
    return sorted(set(re.findall(r"[a-z]+|[0-9]", text.replace("{x}", " "))))


def split_words(prompt: str) -> list[str]:
    """The text's words, digits and marks, in lower case; each is one token, or several where it is unknown."""
    return re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]+", prompt.lower())


def find(prompt: str, table: dict[str, tuple[str, ...]]) -> list[str]:
    """The keys of ``table`` that the prompt names, in order of appearance; longer names win."""
    text, places = " " + " ".join(split_words(prompt)) + " ", []
    for key, name in sorted(((k, n) for k, ns in table.items() for n in ns if n), key=lambda kn: -len(kn[1])):
        at = text.find(f" {name} ")
        if at >= 0:
            places.append((at, key))
            text = text[: at + 1] + "_" * len(name) + text[at + 1 + len(name) :]
    return list(dict.fromkeys(key for _, key in sorted(places)))


def parse(prompt: str) -> tuple[str, str | None, str]:
    """Object, color (None where the prompt names none) and material of a prompt that `check_prompt` accepts."""
    check_prompt(prompt)
    colors = find(prompt, COLOR_WORDS)
    materials = find(prompt, {k: MATERIAL_WORDS[k] + MATERIAL_NOUNS[k] for k in MATERIALS if k != "plain"})
    return find(prompt, OBJECTS)[0], colors[0] if colors else None, materials[0] if materials else "plain"


FIX = (
    "a full Stable Diffusion model reads any words: name its folder as the model (carv generate: "
    "system.guidance.pretrained_model_name_or_path=FOLDER)"
)


def check_words(text: str, what: str = "The prompt", room: int = 0) -> None:
    """Check that carv-tiny was taught every word of a text, and reads that many.

    Args:
        text: a prompt or a negative prompt.
        what: its name in messages.
        room: words and commas that will be appended to it.

    Raises:
        CarvError: naming the words, with the nearest that it was taught, or the count.
    """
    known = set(all_words()) | {",", "."}
    near = []
    for w in dict.fromkeys(w for w in split_words(text) if w not in known):
        names = {n for ns in OBJECTS.values() for n in ns}
        close = difflib.get_close_matches(w, sorted(known | names), n=2, cutoff=0.6)
        near.append(f"{w!r}" + (f" (nearest: {', '.join(close)})" if close else ""))
    if near:
        raise CarvError(
            f"carv-tiny does not know {', '.join(near)}; it knows the objects {', '.join(OBJECTS)}, "
            f"the colors {', '.join(COLORS)} and the materials {', '.join(MATERIALS)}; {FIX}."
        )
    count = len(split_words(text))
    if count > LONGEST - room:
        view = f", with {room} kept for the view" if room else ""
        raise CarvError(
            f"{what} has {count} words and commas, and carv-tiny reads {LONGEST - room}{view}: shorten it; {FIX}."
        )


def check_prompt(prompt: str, room: int = 0) -> None:
    """Check a prompt: `check_words`, exactly one object, at most one color and at most one material.

    Raises:
        CarvError: saying what is wrong and what carv-tiny knows.
    """
    if not prompt.strip():
        raise CarvError('The prompt is empty: write what to make, for example "a red mug".')
    objects = find(prompt, OBJECTS)
    if len(objects) > 1:
        several, example = ", ".join(objects), f'"a red {objects[0]}"'
        raise CarvError(f"The prompt names several objects ({several}): name one, as in {example}; {FIX}.")
    check_words(prompt, room=room)
    if not objects:
        raise CarvError(
            f"The prompt names no object that carv-tiny knows: name one of {', '.join(OBJECTS)}, "
            f'as in "a red mug"; {FIX}.'
        )
    materials = {k: MATERIAL_WORDS[k] + MATERIAL_NOUNS[k] for k in MATERIALS}
    for what, table in (("colors", COLOR_WORDS), ("materials", materials)):
        named = find(prompt, table)
        if len(named) > 1:
            several = ", ".join(named)
            raise CarvError(
                f"The prompt names several {what} ({several}), and carv-tiny was taught one an object; {FIX}."
            )
