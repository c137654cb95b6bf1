"""Labelled images: read, augmented and batched."""
