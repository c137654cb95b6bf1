"""RetinaNet training: the detector's description, its model, its data and its checkpoints."""
