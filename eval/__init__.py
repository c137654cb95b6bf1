"""Asks a detector for boxes and judges the answer: client, COCO scores, drawing, benchmark."""
