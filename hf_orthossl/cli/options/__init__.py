"""The options of each command, one file per command, read without torch: help and typos answer at once.

Each module has `read(argv, prog)`, whose results are the arguments of the `main` of the command's own module.
"""


def check_seed(seed: int, untrained: bool) -> None:
    """Refuse a seed of untrained weights where weights are loaded, so that it is not accepted without effect.

    Raises:
        ValueError: There is a seed, and `untrained` is not given.
    """
    if seed and not untrained:
        raise ValueError(f"seed is {seed}, and weights are loaded: pass --untrained too, or leave it out")
