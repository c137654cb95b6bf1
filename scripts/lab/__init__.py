"""What makes this project's own tables and pictures: run by make, not installed."""
