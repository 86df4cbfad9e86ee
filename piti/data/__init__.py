"""Images and conditions: from folders and archives to batches."""

from piti.data.batches import BatchStream, LowRes, SampleSet, TrainingBatch, loader
from piti.data.crops import Sample
from piti.data.folders import PairedFolder
from piti.data.pairs import FolderSpec, Pair
from piti.data.problems import DataError
from piti.data.shards.dataset import ShardSet, open_shards

__all__ = [
    "BatchStream",
    "DataError",
    "FolderSpec",
    "LowRes",
    "Pair",
    "PairedFolder",
    "Sample",
    "SampleSet",
    "ShardSet",
    "TrainingBatch",
    "loader",
    "open_shards",
]
