"""The shapes of a model's weights by its config.json alone, where the weights are not here.

transformers builds the model without memory for its numbers. A process of its own does that, which imports torch.
"""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

from raft.core import progress
from raft.core.errors import UserError
from raft.models import model_folder

PATIENCE = 120  # seconds; a model of 70e9 parameters takes 7 on a shared core, most of them for imports


@cache
def shapes(folder: Path) -> dict[str, list[int]]:
    """The shapes of all parameters by name. UserError if transformers itself has no such model."""
    model_folder.check(folder)
    command = [sys.executable, "-P", "-m", "raft.models.imagined", str(folder)]
    try:
        with progress.waiting(f"the shapes of {folder} are worked out"):
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=PATIENCE
            )
    except subprocess.TimeoutExpired:
        raise UserError(f"{folder / 'config.json'}: its model is not built within {PATIENCE} s") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise UserError(f"{folder / 'config.json'}: transformers builds no model of it ({reason[:200]})")
    return json.loads(done.stdout.splitlines()[-1])  # what a library prints by itself comes before


def _main(folder: str) -> None:
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModel, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    kind = AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModel
    with torch.device("meta"):
        model = kind.from_config(config, trust_remote_code=False)
    print(json.dumps({name: list(one.shape) for name, one in model.named_parameters()}))


if __name__ == "__main__":
    _main(sys.argv[1])
