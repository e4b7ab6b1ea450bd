"""MPI runtime for PyTorch training with momentum when workers do not wait for each other."""
