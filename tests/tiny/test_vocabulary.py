import hashlib
import random

import pytest
from transformers import CLIPTokenizer

from carv_3d.errors import CarvError
from carv_3d.scenes.view_phrases import COARSE_PHRASES, FINE_PHRASES
from carv_3d.teachers.families import BUILT_IN
from carv_3d.tiny import vocabulary as v
from carv_3d.tiny.tokens import WORDS

WEIGHTS = BUILT_IN["carv-tiny"]


def test_sizes_of_the_world() -> None:
    assert len(v.OBJECTS) >= 40
    assert len(v.COLORS) >= 12
    assert len(v.MATERIALS) == 3


def test_a_tenth_of_the_combinations_is_held_out_and_spread() -> None:
    pairs = v.held_out_combinations()
    assert len(pairs) == len(v.OBJECTS) * len(v.COLORS) // 10
    by_object = [sum(o == name for o, _ in pairs) for name in v.OBJECTS]
    by_color = [sum(c == name for _, c in pairs) for name in v.COLORS]
    assert min(by_object) >= 1
    assert max(by_object) <= 2
    assert min(by_color) >= 2
    assert max(by_color) <= 6


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red mug", ("mug", "red", "plain")),
        ("A photo of a striped TEAL coffee mug, front view", ("mug", "turquoise", "striped")),
        ("orange spotted teddy bear", ("bear", "orange", "spotted")),
        ("a lamp", ("lamp", None, "plain")),
        ("a table lamp", ("lamp", None, "plain")),
        ("a red mug with polka dots", ("mug", "red", "spotted")),
        ("a little red mug with stripes", ("mug", "red", "striped")),
    ],
)
def test_parse(prompt: str, expected: tuple) -> None:
    assert v.parse(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("   ", "empty"),
        ("a red zebra", "'zebra'"),
        ("a red mugg", "nearest: mug"),
        ("a red thing", "thing"),
        ("a red", "no object"),
        ("a mug and a car", "several objects"),
        ("a red blue car", "several colors"),
        ("a red mug with stripes and spots", "'and'"),
        ("a striped spotted red mug", "several materials"),
        ("a plain striped red mug", "several materials"),
        (f"a {'big ' * 16}red mug", "The prompt has 19 words and commas, and carv-tiny reads 18: shorten"),
        ("../../x", "does not know"),
        ("<script>", "does not know"),
    ],
)
def test_what_is_not_known_is_refused_in_one_sentence(prompt: str, says: str) -> None:
    with pytest.raises(CarvError, match=says) as refusal:
        v.check_prompt(prompt)
    assert "\n" not in str(refusal.value)
    assert says == "empty" or "a full Stable Diffusion model" in str(refusal.value)


def test_a_prompt_as_long_as_can_be_leaves_room_for_the_view() -> None:
    assert max(len(v.split_words(f", {phrase}")) for phrase in (*FINE_PHRASES, *COARSE_PHRASES)) == v.VIEW_ROOM
    prompt = f"a {'big ' * 11}red mug"
    v.check_prompt(prompt, v.VIEW_ROOM)
    v.check_prompt(prompt + ", back left view")
    for longer in (f"one {prompt}", prompt + ", left view"):
        with pytest.raises(CarvError, match="carv-tiny reads 14, with 4 kept for the view"):
            v.check_prompt(longer, v.VIEW_ROOM)


def test_a_caption_as_long_as_can_be_fills_its_tokens() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer")
    ids = tokenizer(f"a {'big ' * 11}red mug, back left view").input_ids
    assert len(ids) == WORDS == v.LONGEST + 2


def test_a_negative_prompt_is_checked_for_its_words_alone() -> None:
    v.check_words("")
    v.check_words("a blue car, left view")
    with pytest.raises(CarvError, match="'ugly'"):
        v.check_words("ugly")
    with pytest.raises(CarvError, match="The negative prompt has 20 words"):
        v.check_words("big " * 20, "The negative prompt")


def test_the_words_are_those_that_the_shipped_weights_were_taught() -> None:
    words = hashlib.sha256(" ".join(v.all_words()).encode()).hexdigest()
    assert words.startswith("6bc4e2ee9aab")  # a change needs new weights
    v.check_prompt("a picture of a red mug")
    assert (
        v.caption(random.Random(5), "mug", "red", "striped", 5, 35.0)
        == "a picture of a red striped mug, front left view"
    )


def test_every_known_word_is_taught() -> None:
    rng, words = random.Random(1), set()
    for _ in range(30_000):
        color, material = rng.choice(list(v.COLORS)), rng.choice(v.MATERIALS)
        text = v.caption(rng, rng.choice(list(v.OBJECTS)), color, material, rng.uniform(-10, 90), rng.uniform(0, 360))
        words.update(v.split_words(text))
    assert set(v.all_words()) <= words


def test_every_caption_is_made_of_known_words_and_parses_back() -> None:
    rng, known = random.Random(0), set(v.all_words())
    for name in v.OBJECTS:
        for color in v.COLORS:
            material = rng.choice(v.MATERIALS)
            text = v.caption(rng, name, color, material, rng.uniform(-10, 90), rng.uniform(0, 360))
            assert set(v.split_words(text)) - {","} <= known
            assert v.parse(text) == (name, color, material)
