"""Detectors without a server: checkpoints, ONNX graphs and TensorRT plans behind one `OfflineDetector`."""
