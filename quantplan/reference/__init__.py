"""The numeric contract in NumPy, one file per op: what every kernel is held to, bit for bit."""
