"""The options of each command, one file per command, read without torch: help and typos answer at once.

Each module has `read(argv, prog)`, whose results are the arguments of the `main` of the command's own module.
"""
