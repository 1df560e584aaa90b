"""Engines that do the work: this process, several GPUs, or the machines of a Ray cluster."""
