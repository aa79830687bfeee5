"""Plain PyTorch: the meaning of every operation, and the backend of the CPU."""
