"""A synthetic COCO set."""
