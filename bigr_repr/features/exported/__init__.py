"""Feature networks exported as graphs for other runtimes, run without PyTorch's eager mode."""
