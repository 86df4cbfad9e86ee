"""Paired images and conditions: from folders to batches."""

from piti.data.batches import Batch, BatchStream, loader
from piti.data.folders import DataError, FolderSpec, Pair, PairedFolder, Sample

__all__ = ["Batch", "BatchStream", "DataError", "FolderSpec", "Pair", "PairedFolder", "Sample", "loader"]
