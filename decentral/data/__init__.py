"""What a run trains on: datasets whose samples have global ids, and batches from a peer's leases.

    map-style     __getitem__, __len__           id ──▶ epoch, permuted index        order.py
    replayable    iter_from(offset)              id ──▶ offset in the stream         streams.py
    shardable     num_shards, shard(n, index)    id ──▶ shard, offset in the shard   streams.py

Anything else is refused: samples without ids cannot be leased.
"""

from decentral.data.leased import LeasedData
from decentral.data.order import permute, sample_indices
from decentral.data.sources import Dataset, check_dataset, source_of
from decentral.data.streams import Replayable, Shardable, Shards

__all__ = [
    "Dataset",
    "LeasedData",
    "Replayable",
    "Shardable",
    "Shards",
    "check_dataset",
    "permute",
    "sample_indices",
    "source_of",
]
