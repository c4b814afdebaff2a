"""Recipes: how a float model becomes a quantized one, offline and in plain NumPy."""
