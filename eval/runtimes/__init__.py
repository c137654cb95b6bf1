"""Offline detectors: checkpoints, ONNX graphs and TensorRT plans behind one `Detector`."""
