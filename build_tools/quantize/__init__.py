"""INT8: which layers, which ranges, and the Q/DQ nodes that say so."""
