"""From checkpoint to Triton repository: graft, preprocessing, configs, verification."""
