"""Collections of garbage that leave the libraries alone.

Every stage collects what its model leaves behind. Looking through the million objects of torch and transformers, which
stay, takes 0.3 to 1 s each time. Even asking how many are left out takes 0.1 s, so it is remembered here.
"""

import atexit
import gc

_spared: list[bool] = []


def spare() -> None:
    """Takes what lives now, the libraries for the most part, out of the collections; the first call does it."""
    if not _spared:
        gc.freeze()
        atexit.register(gc.unfreeze)  # nanobind takes what is frozen at the end for a leak, and prints pages about it
        _spared.append(True)


def restore() -> None:
    """Lets collections look through everything again."""
    gc.unfreeze()
    _spared.clear()
