"""A process that has the libraries imported and forks for each command: a real `python -m raft`, seconds earlier.

Each line on its standard input is a command as JSON, with the pipe where its process id is told, and its exit status
when it has ended; a process between the two waits for it. No model computes here, so what is
forked has no threads. Of raft no more is imported than what every command imports.
"""

import atexit
import gc
import io
import json
import os
import sys

import omegaconf  # noqa: F401
import torch  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments  # noqa: F401
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

picture = Figure(layout="constrained")
picture.subplots().set_title("fonts, which are looked for once", fontweight="bold")
picture.savefig(io.BytesIO())
get_checkpoint_conversion_mapping("llama")  # made at the first call

gc.freeze()  # a command's collections need not look through the libraries, nor copy their pages
atexit.register(gc.unfreeze)  # nanobind takes what is still frozen at the end for a leak, and prints pages about it

waiters: list[int] = []
for line in sys.stdin:
    asked = json.loads(line)
    if waiter := os.fork():
        waiters = [one for one in [*waiters, waiter] if not os.waitpid(one, os.WNOHANG)[0]]
        continue
    command = os.fork()
    if command == 0:
        for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
            os.dup2(os.open(asked[name], os.O_RDWR), descriptor)
        os.chdir(asked["folder"])
        sys.path[0] = asked["folder"]
        sys.argv = ["raft", *asked["arguments"]]
        break
    with open(asked["told"], "w") as told:
        print(command, file=told, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]), file=told)
    os._exit(0)
else:
    sys.exit()

from raft.cli.main import main  # noqa: E402

main()
