"""The emulated device: the CUDA sources, compiled for the host and run under a scheduler that looks for trouble."""
