"""A transformer's encoder layer: in float32, and as launches that run on a target and are compared."""
