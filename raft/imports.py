"""Where a recipe's own Python is found: in the folder beside the recipe, then on the Python path."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def beside(recipe: Path) -> Iterator[None]:
    """Imports inside the block also look beside the recipe and in the current folder."""
    folders = [str(recipe.absolute().parent), str(Path.cwd())]
    sys.path[:0] = folders
    try:
        yield
    finally:
        for folder in folders:
            sys.path.remove(folder)
