"""The options of kind: sft: wrong ones are named before anything heavy is imported."""

import subprocess
import sys
from typing import Any

from raft.core import registry
from raft.core.options import Fault


def faults(**options: Any) -> dict[str, str]:
    found: list[Fault] = []
    registry.component("trainer", {"kind": "sft", **options}, "trainer", found)
    return {fault.key: fault.message for fault in found}


def test_wrong_options_are_named_before_anything_heavy_is_imported():
    assert faults(num_train_epochs=0, warmup_ratio=2, lora={"r": 8}, args={"adam_beta2": 0.95}).keys() == {
        "trainer.num_train_epochs",
        "trainer.warmup_ratio",
    }
    assert "did you mean adam_beta2" in faults(args={"adam_beta_2": 0.95})["trainer.args.adam_beta_2"]
    assert "learning_rate" not in faults(args={"learning_rate": 1})["trainer.args.learning_rate"].split("free are")[1]
    assert "did you mean lora_alpha" in faults(lora={"alpha": 8})["trainer.lora.alpha"]
    assert "constant_with_warmup" in faults(lr_scheduler_type="constant", warmup_ratio=0.1)["trainer.warmup_ratio"]
    assert faults(args={"adam_beta1": "x"}) == {"trainer.args.adam_beta1": "expected a number, found 'x'"}
    assert faults(args={"learning_rate": "x"}).keys() == {"trainer.args.learning_rate"}
    script = (
        "import sys; from raft.core import registry; found = []; "
        "registry.component('trainer', {'kind': 'sft', 'lora': {'q': 1}, 'args': {'optm': 1}}, 'trainer', found); "
        "assert len(found) == 2, found; assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
