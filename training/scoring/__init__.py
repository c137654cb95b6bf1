"""COCO scores, the judge that computes them, and how far they may be chance."""
