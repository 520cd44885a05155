"""Costs of networks: FLOPs, parameters, latency, and a penalty on them in the loss of alpha."""
