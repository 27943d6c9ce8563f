"""What all training has in common: its options, transformers.Trainer underneath, and a folder at the end.

The only file that uses Trainer. We write the data path: which tokens are in a step, what is learned from each,
and how a step's loss is the sum over several forward passes. Trainer brings the rest: optimisers, schedules,
clipping, mixed precision, checkpointed activations, compilation.
"""

import importlib.util
import json
import logging
import math
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from raft.core import device as devices
from raft.core import library_options, ranks, signals
from raft.core.atomic import fsync_tree, make_readable, remove, write_json
from raft.core.errors import UserError
from raft.core.options import bounded, faults_of_range, speed, suggest
from raft.core.protocols import Advance, Dropped
from raft.core.registry import faults_of_types
from raft.core.seeds import derive
from raft.core.terminal import complain
from raft.core.timing import part
from raft.models import checkpoint, loading, packed_attention, packing, weight_check
from raft.trainers import sharding
from raft.trainers.batches import Order

LOG = logging.getLogger(__name__)

Batch = dict[str, Any]  # arrays; `inputs` is what the model's forward takes
Loss = Callable[[Any, Batch], dict[str, Any]]  # (model, batch) -> its share of the step's numbers, "loss" among them
Before = Callable[[Any, list[Batch]], None]  # (model, this rank's batches of a step), when the step begins

SCHEDULES = Literal[
    "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt", "cosine_with_restarts",
    "cosine_with_min_lr", "warmup_stable_decay",
]  # fmt: skip

WORKERS = 256
MEASURED = "measured.json"  # of a checkpoint: what its steps measured
IDLE = "idle"  # marks a batch that another rank has, of which nothing is learned here
SHORT = 60.0  # seconds of training that a stop does not save
HIGHEST = 65536  # rank of an adapter; the largest models are not as wide

# What the run itself decides, has an option of its own for, or would pass by our data path without effect.
RESERVED_ARGS = re.compile(
    r"output_dir|seed|data_seed|report_to|run_name|project|trackio_.*|num_train_epochs|max_steps|learning_rate"
    r"|lr_scheduler_type|warmup_.*|weight_decay|per_.*_batch_size|batch_.*|auto_find_batch_size"
    r"|gradient_accumulation_steps|gradient_checkpointing|bf16.*|fp16.*|use_cpu|use_cache|logging_.*|log_.*|save_.*"
    r"|eval_.*|do_.*|disable_tqdm|remove_unused_columns|push_to_hub|hub_.*|resume_from_checkpoint|restore_.*"
    r"|load_best_.*|metric_for_.*|greater_is_better|prediction_loss_only|include_.*|ignore_data_skip"
    r"|enable_jit_checkpoint|label_.*|length_column_name|train_sampling_.*|dataloader_drop_last|average_tokens_.*"
    r"|ddp_.*|fsdp.*|deepspeed|local_rank|parallelism_config|accelerator_config"
)
ADVICE = "lower trainer.max_tokens_per_microbatch, set trainer.gradient_checkpointing: true, or use trainer.lora"
UNMERGEABLE = re.compile(r"layer_replication|alora_.*|arrow_.*|megatron_.*")


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """The options of every trainer. A step is exactly `batch_size` examples, however many forward passes that takes.

    On a CPU equal inputs give equal bytes; kernels of GPUs may add in no fixed order, unless args has full_determinism.
    """

    takes_pairs: ClassVar[bool] = False
    makes: ClassVar[str] = "policy"
    resumes: ClassVar[bool] = True
    reserved_args: ClassVar[re.Pattern[str]] = RESERVED_ARGS

    learning_rate: float = 2.0e-5
    num_train_epochs: int = 2
    batch_size: int = 32
    lr_scheduler_type: SCHEDULES = "linear"
    warmup_ratio: float = 0.0  # share of the steps
    weight_decay: float = 0.0
    max_length: int = 2048  # in tokens; what is longer is dropped, never cut
    packing: bool = True  # many texts in a row, which do not see each other; false: a row for each, padded
    max_tokens_per_microbatch: int | None = (
        None  # 2048 on a CPU, else 8192; in the key: how floats are summed depends on it
    )
    attn_implementation: Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_2"] = "auto"
    lora: dict | None = None  # options of peft.LoraConfig; merged into the weights at the end
    gradient_checkpointing: bool = speed(False)
    mixed_precision: Literal["auto", "float32", "bfloat16"] = "auto"
    save_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    checkpoint_minutes: float = speed(30.0)  # between two states that a killed training goes on from; 0: none
    args: dict = field(default_factory=dict)  # options of transformers.TrainingArguments that are free

    @property
    def can_shard(self) -> bool:
        """Whether weights can be sharded; an adapter is small, and the same on every rank."""
        return self.lora is None

    def train(
        self, start: Path, examples: Iterable[Any], out: Path, seed: int, advance: Advance, dropped: Dropped,
        checkpoints: Path | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """Writes a model folder into `out` and gives the memory of the training back; see protocols.Trainer."""
        try:
            return self.fit(start, examples, out, seed, advance, dropped, checkpoints)
        finally:
            free()

    def fit(
        self, start: Path, examples: Iterable[Any], out: Path, seed: int, advance: Advance, dropped: Dropped,
        checkpoints: Path | None,
    ) -> dict[str, float]:  # fmt: skip
        """What a trainer of its kind does."""
        raise NotImplementedError

    def known_args(self) -> dict[str, list[str]]:
        """The options that `args` may name, some of them reserved, with their plain types (see library_options)."""
        return library_options.ask("transformers")["training"]

    def training_arguments(self, **settings: Any) -> Any:
        """What Trainer takes for its options."""
        from transformers import TrainingArguments

        return TrainingArguments(**settings)

    def resolved(self) -> dict[str, Any]:
        """What follows the device where the recipe leaves it open."""
        tokens = self.max_tokens_per_microbatch or packing.FORWARD[devices.current()]
        return {"mixed_precision": "bfloat16" if mixed(self) else "float32", "max_tokens_per_microbatch": tokens}

    def faults(self) -> Iterator[tuple[str, str]]:
        """Values out of range, and names in `args` and `lora` that transformers and peft lack, or that are not free."""
        many = math.inf
        yield from faults_of_range(self, learning_rate=(0, many), weight_decay=(0, many), warmup_ratio=(0, 1))
        yield from faults_of_range(self, checkpoint_minutes=(0, many))
        yield from faults_of_range(self, num_train_epochs=(1, many), batch_size=(1, many), max_length=(2, many))
        if self.max_tokens_per_microbatch is not None:
            yield from faults_of_range(self, max_tokens_per_microbatch=(1, many))
        if self.lr_scheduler_type == "constant" and self.warmup_ratio:
            yield (
                "warmup_ratio",
                "lr_scheduler_type: constant has no warm-up; use lr_scheduler_type: constant_with_warmup",
            )
        if self.args:
            known, reserved = self.known_args(), self.reserved_args
            yield from _not_free("args", self.args, known, reserved)
            free = {name: value for name, value in self.args.items() if not reserved.fullmatch(str(name))}
            yield from faults_of_types("args", free, known)
        if isinstance(workers := self.args.get("dataloader_num_workers"), int) and not 0 <= workers <= WORKERS:
            yield "args.dataloader_num_workers", f"{workers} is out of range; each is a process, 0 to {WORKERS}"
        if self.lora is not None:
            yield from _not_free("lora", self.lora, library_options.ask("peft")["lora"], UNMERGEABLE)
            if isinstance(targets := self.lora.get("target_modules"), str) and (why := _no_pattern(targets)):
                yield "lora.target_modules", f"{targets!r} is not a regular expression ({why})"
            if isinstance(rank := self.lora.get("r"), int) and not 1 <= rank <= HIGHEST:
                yield "lora.r", f"{rank} is out of range; it must be from 1 to {HIGHEST}, and is mostly 8 to 128"

    def check(self) -> None:
        """UserError if transformers, or torch's optimiser, refuses `args`; without any, nothing is imported.

        The optimiser is made for one weight: most of its options are looked at only then.
        """
        if not self.args:
            return
        import torch
        from transformers import Trainer

        if device().type == "cpu" and any(name.startswith("torch_compile") for name in self.args):
            raise UserError("trainer.args.torch_compile: compiling takes minutes for each length on a CPU; remove it")
        weight = torch.nn.Parameter(torch.zeros(1, device=device()))
        given = ", ".join(f"{name}: {value}" for name, value in self.args.items())
        with refused(f"args ({bounded(given)})"), tempfile.TemporaryDirectory() as folder:
            arguments = arguments_of(self, 1, Path(folder), 0)
            kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, None)
            optimizer = kind([weight], **options)
            weight.grad = torch.zeros_like(weight)
            optimizer.step()
            float(torch.nn.utils.clip_grad_norm_([weight], arguments.max_grad_norm))
            if arguments.use_liger_kernel and importlib.util.find_spec("liger_kernel") is None:
                raise ImportError("use_liger_kernel: liger-kernel is not installed here: pip install liger-kernel")


@contextmanager
def refused(option: str) -> Iterator[None]:
    """Turns what transformers, torch and peft raise at an option of theirs into a UserError that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as fault:  # of any class: type, range, a missing package
        reason = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise UserError(f"trainer.{option}: {reason}") from fault


def _no_pattern(text: str) -> str | None:
    try:
        re.compile(text)
    except re.error as fault:
        return str(fault)
    return None


def _not_free(option: str, given: dict, known: Collection[str], decided: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    free = [name for name in known if not decided.fullmatch(name)]
    for name in map(str, given):
        if name not in known:
            yield f"{option}.{name}", f"unknown key; {suggest(name, free)}"
        elif name not in free:
            owner = "raft sets this itself, for one GPU, or has an option for it"
            yield f"{option}.{name}", f"{owner}; free are: {', '.join(free)}"


def load(options: TrainerOptions, start: Path, seed: int, kind: str = "CausalLM", **more: Any) -> Any:
    """The model to train, in float32; an empty one where another rank has the weights, to be sharded.

    Everything random from here on depends on the seed alone.
    """
    from transformers import set_seed

    set_seed(torch_seed(seed))
    if options.attn_implementation != "auto":
        more["attn_implementation"] = options.attn_implementation
    with part("load"):
        if ranks.sharded() and ranks.number():
            return loading.skeleton(start, kind, **more)
        return loading.load_model(start, kind, **more)


def ready(options: TrainerOptions, model: Any) -> Any:
    """The model on its device, or sharded, with our attention if it is to read packed rows and can."""
    with part("load"), devices.fits("the model to train", ADVICE):
        model = sharding.shard(model, device()) if ranks.sharded() else model.to(device())
    if options.packing and options.attn_implementation == "auto":
        packed_attention.adopt(model, lambda model, **inputs: sharding.within(model, hidden, **inputs))
    return model


def hidden(model: Any, **inputs: Any) -> Any:
    """The states after the last layer [rows, tokens, width]."""
    return plain(model).base_model(**inputs, use_cache=False).last_hidden_state


def adapt(options: TrainerOptions, model: Any, task: str) -> Any:
    """The model with LoRA weights to train in place of its own, if the recipe asks for that."""
    if options.lora is None:
        return model
    from peft import LoraConfig, get_peft_model

    with refused("lora"):
        return get_peft_model(model, LoraConfig(task_type=task, **options.lora))


def plain(model: Any) -> Any:
    """The transformers model itself, inside LoRA or not."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def looking(options: TrainerOptions) -> Iterator[None]:
    """Forward passes with the arithmetic of training, and without gradients."""
    import torch

    with torch.no_grad(), torch.autocast(device().type, torch.bfloat16, enabled=mixed(options)):
        yield


class Steps:
    """What Trainer takes for a data set: item i is optimiser step i, as the batches of its forward passes."""

    def __init__(self, order: Order, batches: Callable[[np.ndarray], list[Batch]]):
        self.order, self.batches = order, batches

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, number: int) -> dict[str, list[Batch]]:
        batches = self.batches(self.order.step(number))
        own = list(ranks.own(batches))
        if ranks.sharded() and len(own) * ranks.count() < len(batches):  # all ranks compute together
            own.append({**batches[-1], IDLE: True})
        return {"batches": [tensors(batch) for batch in own]}


def fit(
    options: TrainerOptions,
    model: Any,
    steps: Steps,
    loss: Loss,
    out: Path,
    seed: int,
    advance: Advance,
    checkpoints: Path | None,
    before: Before | None = None,
) -> list[dict[str, float]]:
    """Trains the model in place and returns what each step measured: the sums of what its batches did.

    `before` is called on every rank when a step begins, also on one that has no batch of it. Training goes on from the
    last whole one of its checkpoints; without a folder for them it has none.
    """
    uses_cache = model.config.use_cache
    if checkpoints is not None and ranks.sharded():
        checkpoints = checkpoints / f"rank {ranks.number()} of {ranks.count()}"
    saves = Checkpoints(checkpoints or out, options.checkpoint_minutes if checkpoints else 0, advance)
    if saves.last and not ranks.number():
        said = f"training goes on from step {len(saves.measured)} of {len(steps)}"
        LOG.info(said)  # of a worker, whose standard error is not that of the command
        complain(said)
    with devices.deterministic_switches_kept(), devices.fits("training", ADVICE):
        arguments = arguments_of(options, len(steps), saves.folder, seed)
        trainer = _trainer(model, arguments, steps, loss, saves, before)
        trainer.train(resume_from_checkpoint=saves.last)
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    model.zero_grad(set_to_none=True)
    model.config.use_cache = uses_cache
    return saves.measured


def arguments_of(options: TrainerOptions, steps: int, out: Path, seed: int) -> Any:
    """What Trainer takes for its options, for so many steps; UserError names those that it refuses."""
    on_cpu = device().type == "cpu"
    with refused("args"):
        arguments = options.training_arguments(
            **{"dataloader_pin_memory": not on_cpu, **options.args},
            output_dir=str(out),
            seed=torch_seed(seed),
            num_train_epochs=1,  # of `Steps`, which knows the real epochs
            per_device_train_batch_size=1,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            learning_rate=options.learning_rate,
            lr_scheduler_type=options.lr_scheduler_type,
            warmup_steps=math.ceil(options.warmup_ratio * steps),
            weight_decay=options.weight_decay,
            gradient_checkpointing=options.gradient_checkpointing,
            bf16=mixed(options),
            use_cpu=on_cpu,
            use_cache=False,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            logging_nan_inf_filter=False,
        )
    assert arguments.device.type == device().type
    arguments._n_gpu = 1  # with more, Trainer would split each batch among them by itself
    return arguments


class Checkpoints:
    """The states that a training goes on from: weights, optimiser, schedule and random numbers, as Trainer saves them.

    One is whole when it has what the steps measured, which is written last.
    """

    def __init__(self, folder: Path, minutes: float, advance: Advance):
        self.seconds, self.advance = 60 * minutes, advance
        self.folder = folder
        whole = [path for path in self.folder.glob("checkpoint-*") if (path / MEASURED).exists()]
        last = max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)
        self.measured: list[dict[str, float]] = json.loads((last / MEASURED).read_text()) if last else []
        name, self.measured = ranks.first((last.name if last else None, self.measured))
        self.last = str(self.folder / name) if name else None
        self.saved = time.monotonic()

    def due(self) -> bool:
        """Whether a state is to be saved now: the time has come, or the process is asked to stop."""
        waited = time.monotonic() - self.saved
        stopping = signals.asked() and waited > min(self.seconds, SHORT)
        due = self.seconds > 0 and (waited >= self.seconds or stopping)
        return ranks.first(due) if ranks.sharded() else due and not ranks.number()

    def complete(self, step: int) -> None:
        """Notes that the state of a step is on the disk, of every rank that has one, and deletes those before it."""
        path = self.folder / f"checkpoint-{step}"
        fsync_tree(path)
        if ranks.sharded():
            ranks.wait()
        if not ranks.number():
            write_json(path / MEASURED, self.measured)
        if ranks.sharded():
            ranks.wait()
        for other in self.folder.glob("checkpoint-*"):
            if other != path:
                remove(other)
        self.saved = time.monotonic()


def _trainer(model: Any, arguments: Any, steps: Steps, loss: Loss, saves: Checkpoints, before: Before | None) -> Any:
    import torch
    from accelerate.utils import AutocastKwargs
    from transformers import PrinterCallback, Trainer, TrainerCallback

    class Fit(Trainer):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            self.parts: list[dict[str, Any]] = []
            if before is not None:
                with self.accelerator.autocast():
                    before(model, inputs["batches"])
            losses = (super(Fit, self).training_step(model, batch) for batch in inputs["batches"])
            total = sum(losses, torch.zeros((), device=self.args.device))
            if not ranks.sharded():
                ranks.add_up([parameter for parameter in model.parameters() if parameter.requires_grad])
            saves.measured.append(ranks.total(_sums(self.parts)))
            _finite("loss is", saves.measured[-1]["loss"], self.state.global_step + 1)
            return total

        def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
            norm = super()._get_grad_norm(model, grad_norm)  # before the optimiser has spread it into the weights
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            _finite("norm of the gradients is", float(norm), self.state.global_step + 1)
            return norm

        def compute_loss(self, model: Any, inputs: Any, *ignored: Any, **more: Any) -> Any:
            idle = inputs.pop(IDLE, None) is not None
            with self.accelerator.autocast():
                found = sharding.within(model, loss, inputs)
            if idle:
                return 0.0 * found["loss"]
            self.parts.append({name: value.detach() for name, value in found.items()})
            return found["loss"]

        def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
            if ranks.sharded():
                sharding.save_own(model, Path(str(output_dir)))
            else:
                super().save_model(output_dir, _internal_call)

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            if ranks.sharded():
                sharding.load_own(self.model, Path(resume_from_checkpoint))
            else:
                super()._load_from_checkpoint(resume_from_checkpoint, model)

        def floating_point_ops(self, inputs: Any) -> int:
            return 0

    class Tell(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            control.should_save = state.global_step < state.max_steps and saves.due()
            if not control.should_save:
                saves.advance(state.global_step, state.max_steps)

        def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            saves.complete(state.global_step)
            saves.advance(state.global_step, state.max_steps)

    trainer = Fit(model, arguments, data_collator=lambda items: items[0], train_dataset=steps, callbacks=[Tell()])
    trainer.remove_callback(PrinterCallback)
    if ranks.sharded():  # copies in bfloat16, kept until the end of a forward pass, would be those of all weights
        trainer.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
    return trainer


def _sums(parts: list[dict[str, Any]]) -> dict[str, float]:
    return {name: float(sum(part[name] for part in parts)) for name in (parts[0] if parts else ())}


def _finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise UserError(
            f"the {what} {value} at step {step}, so the weights would be lost. After steps with a growing loss: lower "
            "trainer.learning_rate, or raise trainer.warmup_ratio. From the first steps on: try "
            "trainer.mixed_precision: float32 and trainer.attn_implementation: eager, which show whether a kernel "
            "is at fault"
        )


def summary(measured: list[dict[str, float]], order: Order) -> dict[str, float]:
    """Each number's mean over the steps of the last epoch, and the loss over the first tenth of the first epoch."""
    last, first = measured[-order.per_epoch :], measured[: -(-order.per_epoch // 10)]
    means = {f"train/{name}": float(np.mean([step[name] for step in last])) for name in last[0]}
    start = float(np.mean([step["loss"] for step in first]))
    return {**means, "train/loss_first": start, "train/steps": len(measured), "train/examples": order.count}


def save_policy(
    options: TrainerOptions, model: Any, tokenizer: Any, start: Path, out: Path, texts: list[list[int]], before: Any
) -> Any:
    """Writes the trained policy and its probe of `texts`, of which `before` is what weight_check said at the start.

    Returns the model as it was saved, with whole weights; None on ranks that write nothing.
    """
    model = merged(model)
    rounded(model, options.save_dtype)  # the probe is of the weights as they are saved
    after = sharding.within(model, weight_check.of_engines, texts)
    if (model := sharding.whole(model)) is not None:
        weight_check.write(out / "probe.json", texts, after, before)
        save(model, tokenizer, start, out, options.save_dtype)
    return model


def merged(model: Any) -> Any:
    """The model with its LoRA weights, if it has any, added to its own."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def rounded(model: Any, dtype: str) -> None:
    """Rounds the parameters, in place, to what a number format holds; they stay in float32."""
    import torch

    for parameter in model.parameters():
        values = sharding.own(parameter.data)
        values.copy_(values.to(getattr(torch, dtype)))


def cast(model: Any, dtype: str) -> None:
    """Turns the parameters into a number format; buffers such as rotary frequencies are not saved and stay."""
    import torch

    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))


@part("save")
def save(model: Any, tokenizer: Any, start: Path, out: Path, dtype: str, heads: tuple[str, ...] = ()) -> None:
    """A folder that `from_pretrained` and vLLM load. The generation config is that of the start, unchanged.

    UserError if it has not the tensors of the start; but output layers, whose names begin with one of `heads`, may
    come and go.
    """
    cast(model, dtype)
    tokenizer.save_pretrained(out)
    generation = start / "generation_config.json"
    kept = generation.exists() and model.can_generate()
    if kept:  # saved by transformers it would be checked again, and some on the hub do not pass
        model.generation_config = type(model.generation_config)()
    with loading.quiet():
        model.save_pretrained(out)
    make_readable(out)
    if kept:
        shutil.copyfile(generation, out / generation.name)
    _check_kept(start, out, (*heads, *getattr(model, "all_tied_weights_keys", ())))


def _check_kept(start: Path, out: Path, apart: tuple[str, ...]) -> None:
    """UserError if the tensors of two folders differ in number or shape; names may begin in another way."""
    if not checkpoint.has_safetensors(start):
        return  # old weights: that none of them was left out was checked when they were loaded
    before, after = (
        {
            name: tuple(shape)
            for name, shape in checkpoint.shapes(folder).items()
            if not name.startswith(apart) and not loading.OLD_BUFFERS.search(name)
        }
        for folder in (start, out)
    )
    if Counter(before.values()) != Counter(after.values()):
        lost, new = sorted(before.keys() - after.keys()), sorted(after.keys() - before.keys())
        raise UserError(
            f"what was trained has {len(after)} tensors, and {start} has {len(before)} (lost: {', '.join(lost[:3])}; "
            f"new: {', '.join(new[:3])}); training this architecture would change more than its weights, use another"
        )


def tensors(found: Any, where: Any = None) -> Any:
    """Arrays as tensors, in mappings as deep as they are."""
    import torch

    if isinstance(found, dict):
        return {name: tensors(value, where) for name, value in found.items()}
    return torch.as_tensor(found, device=where)


def device() -> Any:
    """Where training happens: the first CUDA device, or the CPU."""
    import torch

    return torch.device("cuda:0" if devices.current() == "cuda" else "cpu")


def mixed(options: TrainerOptions) -> bool:
    """Whether matrices are multiplied in bfloat16; weights, gradients and losses are float32 always."""
    if options.mixed_precision != "auto" or devices.current() == "cpu":
        return options.mixed_precision == "bfloat16"
    import torch

    return torch.cuda.is_bf16_supported(including_emulation=False)


def torch_seed(seed: int) -> int:
    """A seed that numpy's old generator takes too, which `set_seed` seeds."""
    return derive(seed, "torch") % 2**32


def free() -> None:
    """Gives memory back; Trainer holds itself in circles."""
    import gc

    gc.collect()
    devices.free_cache()
