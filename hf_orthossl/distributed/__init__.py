"""Distributed training: collectives, gathering with gradient, batch norm, sharded weights, launching.

Import from the modules: importing `environment` must not import torch.
"""
