"""Drills: what the server is put through on purpose, and the figures that come of it."""
