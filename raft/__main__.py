"""`python -m raft`."""

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the current folder, whose files could have the names of libraries

from raft.cli.main import main

main()
