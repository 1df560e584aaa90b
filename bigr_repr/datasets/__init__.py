"""Labeled image sets for training and evaluation: folders, Parquet files, tar shards, data sets by name."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
