"""Several GPUs as one peer, or as one peer per shard: torch.distributed inside, decentral outside.

entry           `decentral.island`: which kind of island the model is, and its `Run`
talk            the few collectives that the processes of an island need for themselves
watch           who of them is alive, and what the one that failed had to say
shard_tensors   a rank's local shards of a model under FSDP2, as a run's `Tensors`
pace            what sharded ranks agree on, step by step
founding        how every shard's initial state gets into a new run
shard_save      the whole model to disk, by torch.distributed.checkpoint
replicas        DDP: rank 0 exchanges, the others follow
"""
