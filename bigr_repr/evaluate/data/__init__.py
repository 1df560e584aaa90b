"""The training and test images of a benchmark, and features with labels."""
