"""Feature networks as graphs of other runtimes: written once, run without PyTorch's eager mode."""
