"""Decode and NMS: the NumPy reference that defines their arithmetic, and (later) the CUDA plugins."""
