"""TensorRT engines: built, described, checked, and matched to the GPU they are for."""
