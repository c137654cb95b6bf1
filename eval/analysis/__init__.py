"""What a report tells beyond COCO's numbers: errors by type, thresholds, calibration, intervals, comparisons."""
