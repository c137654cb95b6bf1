"""The report on a labelled set: scores, errors, thresholds, and the page that shows them."""
