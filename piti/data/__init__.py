"""Images and conditions: from folders and archives to batches."""

from piti.data.batches import Batch, BatchStream, LowRes, loader
from piti.data.folders import PairedFolder, Sample
from piti.data.pairs import FolderSpec, Pair
from piti.data.problems import DataError

__all__ = ["Batch", "BatchStream", "DataError", "FolderSpec", "LowRes", "Pair", "PairedFolder", "Sample", "loader"]
