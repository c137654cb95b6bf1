"""The evaluation report as one HTML file that needs no network."""
