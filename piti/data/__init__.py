"""Images and conditions: from folders and archives to batches."""

from piti.data.batches import Batch, BatchStream, LowRes, SampleSet, loader
from piti.data.crops import Sample
from piti.data.folders import PairedFolder
from piti.data.pairs import FolderSpec, Pair
from piti.data.problems import DataError
from piti.data.shards.dataset import ShardSet, open_shards

__all__ = [
    "Batch",
    "BatchStream",
    "DataError",
    "FolderSpec",
    "LowRes",
    "Pair",
    "PairedFolder",
    "Sample",
    "SampleSet",
    "ShardSet",
    "loader",
    "open_shards",
]
