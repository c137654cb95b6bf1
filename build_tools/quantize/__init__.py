"""INT8: which layers, which ranges, and the Q/DQ nodes for them."""
