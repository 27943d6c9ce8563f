"""A process that has the libraries imported and forks for each command: a real `python -m raft`, seconds earlier.

Each line on its standard input is a command as JSON; the answer is its exit status. Nothing of raft is imported here,
nor does anything compute, so what is forked has no threads.
"""

import atexit
import gc
import json
import os
import sys

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import omegaconf  # noqa: F401
import torch  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments  # noqa: F401

gc.freeze()  # a command's collections need not look through the libraries, nor copy their pages
atexit.register(gc.unfreeze)  # nanobind takes what is still frozen at the end for a leak, and prints pages about it

for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        for descriptor, name in enumerate([os.devnull, asked["stdout"], asked["stderr"]]):
            os.dup2(os.open(name, os.O_RDWR), descriptor)
        os.chdir(asked["folder"])
        sys.path[0] = asked["folder"]
        sys.argv = ["raft", *asked["arguments"]]
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()

from raft.cli.main import main  # noqa: E402

main()
