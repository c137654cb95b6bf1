"""Is what is served what was trained? Tensors and boxes of two detectors, compared."""
