"""Asks a detector for boxes and judges the answer: client, runtimes, report, verification, benchmark, page."""
