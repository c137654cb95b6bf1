"""The corpus: what it promises of its bytes, judged by Pillow."""

import io
import warnings

import pytest
from PIL import Image, ImageSequence

from retinaserve.scripts.drills.corpus import corpus, formats, specials
from retinaserve.scripts.drills.mutators import MUTATORS


@pytest.mark.parametrize("sample", list(formats()), ids=lambda sample: sample.name)
def test_formats_are_what_their_names_say(sample) -> None:  # type: ignore[no-untyped-def]
    with Image.open(io.BytesIO(sample.data)) as image:
        assert str(image.format).lower() in sample.name.split()
        assert image.size == (160, 120)
        if "animated" in sample.name:
            assert len(list(ImageSequence.Iterator(image))) == 2
        modes = {"cmyk": "CMYK", "ycck": "CMYK", "16": "I;16", "1": "1", "palette": "P", "grey": "L"}
        for word, mode in modes.items():
            if word in sample.name.split():
                assert image.mode == mode
        if "ycck" in sample.name:
            assert image.info["adobe_transform"] == 2


def test_bombs_are_small_and_claim_a_lot() -> None:
    bombs = [sample for sample in specials() if "bomb" in sample.name]
    assert len(bombs) == 3
    for sample in bombs:
        assert len(sample.data) < 200_000
        with warnings.catch_warnings(), pytest.raises(Image.DecompressionBombError):
            warnings.simplefilter("ignore")
            Image.open(io.BytesIO(sample.data))


def test_the_same_seed_gives_the_same_bytes() -> None:
    one, same, other = ([sample.data for sample in corpus(150, seed=seed)] for seed in (7, 7, 8))
    assert len(one) == 150 and one == same and one != other
    assert list(corpus(0)) == []


def test_every_mutator_changes_something() -> None:
    named = {name for sample in corpus(400) for name in MUTATORS if name in sample.name}
    assert named == set(MUTATORS)
    good = {sample.data for sample in formats()}
    mutated = [sample for sample in corpus(400) if "," in sample.name]
    assert sum(sample.data in good for sample in mutated) <= 3, "a zero over a zero, at most"
