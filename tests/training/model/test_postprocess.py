import numpy as np
import pytest
import torch

from retinaserve.training.trainer.validate import detect
from tests.heads import SPECS, assert_equal_detections, random_heads, reference_detections


def run(spec, heads):
    levels = [
        (torch.from_numpy(logits), torch.from_numpy(deltas))
        for logits, deltas in zip(heads.logits, heads.deltas, strict=True)
    ]
    return detect(spec, levels, heads.letterbox)


@pytest.mark.parametrize("name", SPECS)
def test_equals_the_reference(name):
    spec = SPECS[name]
    heads = random_heads(spec)
    expected = reference_detections(spec, heads)
    assert expected[0][0, 0] == 0 and expected[0][1, 0] == 1  # the kinds are what they are called
    assert_equal_detections(run(spec, heads), expected)


def test_a_batch_equals_its_images_alone():
    spec = SPECS["3 classes 96x160, no multiple of 128"]
    heads = random_heads(spec, ("many", "none", "few", "ties", "many"), seed=3)
    together = run(spec, heads)
    for image in range(5):
        alone = run(spec, heads.take([image]))
        assert all((a[0] == b[image]).all() for a, b in zip(alone, together, strict=True))


def test_more_equal_logits_than_fit_go_by_flat_index():
    spec = SPECS["few candidates, other thresholds"]
    heads = random_heads(spec, ("none",))
    for level in heads.logits:
        level[:] = 1.5
    assert_equal_detections(run(spec, heads), reference_detections(spec, heads))


def test_half_precision_heads_are_computed_in_float32():
    spec = SPECS["1 class 64x64"]
    heads = random_heads(spec, ("many",), seed=1)
    half = heads.__class__(
        [level.astype(np.float16) for level in heads.logits],
        [level.astype(np.float16) for level in heads.deltas],
        heads.letterbox,
    )
    assert_equal_detections(run(spec, half), reference_detections(spec, half))
