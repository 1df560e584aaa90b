"""Classifiers on frozen features: linear probes and nearest neighbors."""
