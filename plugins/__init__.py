"""Decode and NMS: the NumPy reference that defines their arithmetic, and the CUDA kernels and TensorRT plugins."""
