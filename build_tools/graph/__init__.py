"""ONNX graphs: what they hold, and the decode and NMS that are grafted onto the heads."""
