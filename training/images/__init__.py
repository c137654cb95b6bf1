"""Image files on their way: found, read upright, sized by the detector's rule, cut into windows, drawn upon."""
