"""Several processes working on one run: collectives, gathering with gradient, batch norm, sharded weights, launching.

Import from the modules: `launch` must not cost a command the import of torch.
"""
