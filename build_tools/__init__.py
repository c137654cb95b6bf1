"""From checkpoint to Triton repository: export, graft, quantization, preprocessing, engines, configs."""
