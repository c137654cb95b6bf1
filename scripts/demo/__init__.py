"""The whole road on synthetic data, and its short cut."""
