"""The network, what it is trained on, and the boxes that its heads mean."""
