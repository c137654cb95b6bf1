"""The client of a Triton server: encoded images in, detections out."""
