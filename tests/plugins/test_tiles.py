"""Cutting and merging, by arithmetic done by hand, and with a detector that makes no mistakes."""

import io

import numpy as np
import pytest
from PIL import Image

from retinaserve.plugins.tiles import encode_bmp, merge_tiles, tile_windows

# Two windows of an image of 100 x 180 that share x 80 to 100; a box within 1.6 px of x 80 or 100 is cut there.
SEAM = tile_windows((100, 180), (100, 100), 0.2)
LEFT, RIGHT = 0, 1


@pytest.mark.parametrize(
    ("side", "tile", "overlap", "starts"),
    [
        (1000, 512, 0.2, [0, 410, 488]),  # the published example of sahi's slicing
        (1001, 500, 0.0, [0, 500, 501]),
        (1000, 500, 0.0, [0, 500]),
        (500, 500, 0.2, [0]),
        (300, 500, 0.2, [0]),
        (501, 500, 0.5, [0, 1]),
    ],
)
def test_starts(side: int, tile: int, overlap: float, starts: list[int]) -> None:
    windows = tile_windows((tile, side), (tile, tile), overlap)
    assert windows[:, 0].tolist() == starts
    assert windows[:, 2].tolist() == [min(start + tile, side) for start in starts]
    assert windows[:, [1, 3]].tolist() == [[0, tile]] * len(starts)
    assert tile_windows((side, tile), (tile, tile), overlap)[:, [1, 0, 3, 2]].tolist() == windows.tolist()


def test_windows_go_row_by_row() -> None:
    assert tile_windows((150, 200), (100, 100), 0.0).tolist() == [
        [0, 0, 100, 100],
        [100, 0, 200, 100],
        [0, 50, 100, 150],
        [100, 50, 200, 150],
    ]


Rows = list[tuple[int, tuple[float, ...], float, int]]  # window, box, score, class
CASES: dict[str, tuple[Rows, Rows]] = {
    "nothing": ([], []),
    "the same object seen whole twice: IoU 100/144": (
        [(LEFT, (85, 20, 95, 30), 0.8, 0), (RIGHT, (85, 20, 97, 32), 0.9, 0)],
        [(-1, (85, 20, 97, 32), 0.9, 0)],
    ),
    "two objects side by side: IoU 20/180": (
        [(LEFT, (82, 20, 92, 30), 0.8, 0), (RIGHT, (90, 20, 98, 30), 0.9, 0)],
        [(-1, (90, 20, 98, 30), 0.9, 0), (-1, (82, 20, 92, 30), 0.8, 0)],
    ),
    "another class stays": (
        [(LEFT, (85, 20, 95, 30), 0.8, 0), (RIGHT, (85, 20, 95, 30), 0.9, 1)],
        [(-1, (85, 20, 95, 30), 0.9, 1), (-1, (85, 20, 95, 30), 0.8, 0)],
    ),
    "one window's boxes are left alone": (
        [(LEFT, (85, 20, 95, 30), 0.9, 0), (LEFT, (85, 20, 95, 31), 0.8, 0)],
        [(-1, (85, 20, 95, 30), 0.9, 0), (-1, (85, 20, 95, 31), 0.8, 0)],
    ),
    "a part cut at the seam falls to the whole, which is weaker and takes its score": (
        [(LEFT, (90, 20, 100, 40), 0.9, 0), (RIGHT, (90, 20, 120, 40), 0.6, 0)],
        [(-1, (90, 20, 120, 40), 0.9, 0)],
    ),
    "a part of which a half lies in the whole is another object": (
        [(LEFT, (90, 20, 100, 40), 0.9, 0), (RIGHT, (90, 30, 120, 50), 0.6, 0)],
        [(-1, (90, 20, 100, 40), 0.9, 0), (-1, (90, 30, 120, 50), 0.6, 0)],
    ),
    "a small whole object within a large cut one stays": (
        [(LEFT, (10, 20, 100, 90), 0.9, 0), (RIGHT, (85, 30, 95, 40), 0.6, 0)],
        [(-1, (10, 20, 100, 90), 0.9, 0), (-1, (85, 30, 95, 40), 0.6, 0)],
    ),
    "an object wider than the overlap is joined": (
        [(LEFT, (60, 20, 100, 40), 0.7, 0), (RIGHT, (80, 21, 150, 40), 0.9, 0)],
        [(-1, (60, 20, 150, 40), 0.9, 0)],
    ),
    "an object that reaches into its tile's padding is joined": (
        [(LEFT, (60, 20, 112, 40), 0.7, 0), (RIGHT, (80, 21, 150, 40), 0.9, 0)],
        [(-1, (60, 20, 150, 40), 0.9, 0)],
    ),
    "parts that differ in what both saw are two: IoU 10/30": (
        [(LEFT, (60, 20, 100, 40), 0.7, 0), (RIGHT, (80, 30, 150, 50), 0.9, 0)],
        [(-1, (80, 30, 150, 50), 0.9, 0), (-1, (60, 20, 100, 40), 0.7, 0)],
    ),
    "of three views, two parts and a whole, the whole stays": (
        [
            (LEFT, (84, 20, 99, 40), 0.9, 0),
            (RIGHT, (84, 20, 104, 40), 0.8, 0),
            (RIGHT, (120, 20, 140, 40), 0.5, 0),
        ],
        [(-1, (84, 20, 104, 40), 0.9, 0), (-1, (120, 20, 140, 40), 0.5, 0)],
    ),
    "at the image's own border nothing is cut": (
        [(LEFT, (0, 20, 15, 40), 0.9, 0), (RIGHT, (170, 20, 180, 40), 0.8, 0)],
        [(-1, (0, 20, 15, 40), 0.9, 0), (-1, (170, 20, 180, 40), 0.8, 0)],
    ),
}


def merged(windows: np.ndarray, rows: Rows, size: tuple[int, int]) -> Rows:
    owners = np.array([row[0] for row in rows], np.int64)
    boxes = np.array([row[1] for row in rows], np.float32).reshape(-1, 4)
    scores = np.array([row[2] for row in rows], np.float32)
    classes = np.array([row[3] for row in rows], np.int32)
    found = merge_tiles(windows, boxes, scores, classes, owners, size=size)
    return [(-1, tuple(box), round(float(score), 4), int(index)) for box, score, index in zip(*found, strict=True)]


@pytest.mark.parametrize("case", CASES)
def test_merge_by_hand(case: str) -> None:
    rows, expected = CASES[case]
    assert merged(SEAM, rows, (100, 180)) == expected
    turned = [(owner, (y1, x1, y2, x2), score, index) for owner, (x1, y1, x2, y2), score, index in rows]
    swapped = [(owner, (y1, x1, y2, x2), score, index) for owner, (x1, y1, x2, y2), score, index in expected]
    assert merged(SEAM[:, [1, 0, 3, 2]], turned, (180, 100)) == swapped, "likewise below"


def test_four_parts_around_a_corner_are_one() -> None:
    windows = tile_windows((180, 180), (100, 100), 0.2)
    rows: Rows = [
        (0, (60, 60, 100, 100), 0.6, 0),
        (1, (80, 60, 130, 100), 0.7, 0),
        (2, (60, 80, 100, 130), 0.8, 0),
        (3, (80, 80, 130, 130), 0.9, 0),
    ]
    assert merged(windows, rows, (180, 180)) == [(-1, (60, 60, 130, 130), 0.9, 0)]
    assert merged(windows, rows[::-1], (180, 180)) == [(-1, (60, 60, 130, 130), 0.9, 0)]


@pytest.mark.parametrize("overlap", [0.1, 0.2, 0.5])
def test_a_perfect_detector_stays_perfect(overlap: float) -> None:
    """Each object is seen by each window as far as it reaches into it; what is merged is what was placed."""
    rng = np.random.default_rng(3)
    size, tile = (700, 900), (128, 160)
    windows = tile_windows(size, tile, overlap)
    truth: list[tuple[tuple[float, ...], int]] = []
    places = [(x, y) for x in windows[:, 0] for y in windows[:, 1]]  # on every seam and corner
    for x, y in [*places, *rng.uniform((0, 0), (900, 700), (400, 2))]:
        width, height = rng.integers(10, 100, 2)
        x1, y1 = max(0, int(x) - width // 2), max(0, int(y) - height // 2)
        box = (x1, y1, min(900, x1 + width), min(700, y1 + height))
        inflated = np.add(box, (-3, -3, 3, 3))
        if not any(np.all(inflated[:2] < other[2:]) and np.all(inflated[2:] > other[:2]) for other, _ in truth):
            truth.append((box, int(rng.integers(3))))
    assert len(truth) > 60
    rows: Rows = []
    for owner, (x1, y1, x2, y2) in enumerate(windows):
        for box, index in truth:
            part = np.clip(box, (x1, y1, x1, y1), (x2, y2, x2, y2))
            if (part[2:] > part[:2]).all():
                rows.append((owner, tuple(part), 0.9, index))
    assert len(rows) > 1.2 * len(truth)
    found = merged(windows, rows, size)
    assert sorted((box, index) for _, box, _, index in found) == sorted(truth)


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (33, 1)])
def test_bmp_keeps_every_pixel(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_bmp(pixels)))), pixels)
