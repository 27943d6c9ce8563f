"""The tensors of a model folder by name, without a model class: safetensors, or old weights read as tensors only."""

import json
import pickle
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raft.core.errors import UserError

FORMATS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")  # files of weights, or an index
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


class Checkpoint:
    """Which file holds which tensor. UserError if the folder has no weights, or its index names missing files."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files = _files(folder)

    @property
    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self.files)

    def tensors(self, names: Iterable[str]) -> dict[str, Any]:
        """These tensors in float32, by name."""
        wanted: dict[Path, list[str]] = {}
        for name in names:
            wanted.setdefault(self.files[name], []).append(name)
        loaded: dict[str, Any] = {}
        for file, inside in wanted.items():
            loaded |= _read(file, inside)
        return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in loaded.items()}

    def row(self, name: str, index: int) -> Any:
        """One row of a matrix in float32, shape (1, columns); of safetensors nothing else is read."""
        file = self.files[name]
        if file.suffix != ".safetensors":
            return _read(file, [name])[name][index : index + 1].float()
        with _opened(file) as opened:
            return opened.get_slice(name)[index : index + 1].float()

    def shape(self, name: str) -> list[int]:
        """The shape of a tensor."""
        file = self.files[name]
        if file.suffix != ".safetensors":
            return list(_read(file, [name])[name].shape)
        with _opened(file) as opened:
            return opened.get_slice(name).get_shape()


def shapes(folder: Path) -> dict[str, list[int]]:
    """The shapes of all tensors of numbers with a fraction, by name; torch is not imported.

    UserError for old weights too: their shapes are unknown without reading them.
    """
    if not has_safetensors(folder):
        raise UserError(
            f"{folder} holds no safetensors, and the sizes of old weights are known only when they are read"
        )
    known: dict[str, list[int]] = {}
    for file in sorted(set(_files(folder).values())):
        with _opened(file, "np") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            known |= {
                name: piece.get_shape() for name, piece in slices.items() if piece.get_dtype().startswith(("F", "BF"))
            }
    return known


def has_weights(folder: Path) -> bool:
    """Whether the folder has weights of any kind that is read."""
    return any((folder / name).is_file() for name in WEIGHTS)


def has_safetensors(folder: Path) -> bool:
    """Whether the weights of the folder are safetensors, whose names and shapes are known without reading them."""
    return any((folder / name).is_file() for name in WEIGHTS[:2])


def extent(folder: Path) -> tuple[int, int]:
    """How many tensors the weights are, and the longest side of any; old weights have at least a byte of each."""
    if not has_safetensors(folder):
        size = sum(file.stat().st_size for file in folder.glob("pytorch_model*.bin"))
        return size, size
    files = _files(folder)
    sides = [side for file in sorted(set(files.values())) for side in _sides(file)]
    return len(files), max(sides, default=0)


def unread(folder: Path, file: Path) -> bool:
    """Whether a file of a model folder is weights, or an index of some, that are not those of the model."""
    if not (file.suffix in FORMATS or file.name.endswith(".index.json")):
        return False
    first = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    return file.name != first and file not in _files(folder).values()


def _sides(file: Path) -> list[int]:
    with _opened(file, "np") as opened:
        return [side for name in opened.keys() for side in opened.get_slice(name).get_shape()]  # noqa: SIM118


def _files(folder: Path) -> dict[str, Path]:
    """Which file holds which tensor; of several kinds of weights, the files that transformers would load."""
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder} holds no weights ({', '.join(WEIGHTS)}); give what save_pretrained wrote")
    if file.suffix != ".json":
        return dict.fromkeys(_names(file), file)
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        table, _ = dict(index["weight_map"]), index["metadata"]  # without both transformers reads no index
    except (ValueError, KeyError, TypeError, RecursionError) as fault:
        raise UserError(f"{file}: not an index of weights ({fault}); fetch the model again") from None
    suffix = Path(file.name.removesuffix(".index.json")).suffix
    outside = [name for name in table.values() if not _is_shard(name, suffix)]
    if outside:
        raise UserError(
            f"{file} names {outside[0]!r} as a file of weights; raft reads only shards (*{suffix}) that are beside "
            "the index and not hidden. Fetch the model again, or name another"
        )
    missing = sorted({name for name in table.values() if not (folder / name).is_file()})
    if missing:
        raise UserError(f"{file} names files that are not there ({missing[0]}); fetch the model again")
    return {tensor: folder / name for tensor, name in table.items()}


def _is_shard(name: Any, suffix: str) -> bool:
    """Whether a name of an index is that of a file in the folder itself, which its digest covers."""
    return isinstance(name, str) and Path(name).name == name and name.endswith(suffix) and not name.startswith(".")


def _names(file: Path) -> list[str]:
    if file.suffix != ".safetensors":
        return list(_unpickled(file))
    with _opened(file, "np") as opened:
        return list(opened.keys())


def _read(file: Path, names: list[str]) -> dict[str, Any]:
    if file.suffix != ".safetensors":
        whole = _unpickled(file)
        return {name: whole[name] for name in names}
    with _opened(file) as opened:
        return {name: opened.get_tensor(name) for name in names}


@contextmanager
def _opened(file: Path, framework: str = "pt") -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework=framework) as opened:
            yield opened
    except SafetensorError as fault:
        raise UserError(f"{file}: not a complete safetensors file ({fault}); fetch the model again") from fault
    except OSError as fault:
        raise UserError(f"{file} cannot be read ({fault.strerror}); give yourself the permission") from fault


def unreadable(weights: Path, fault: Exception) -> UserError:
    """The error of old weights that are not tensors alone, without torch's words on those: it advises to run them."""
    reason = f"{type(fault).__name__}: {' '.join(str(fault).split())[:200]}"
    if isinstance(fault, pickle.UnpicklingError):
        reason = "damaged, or more than tensors"
    return UserError(
        f"{weights} cannot be read as tensors alone ({reason}); nothing else of it is read. Fetch the model again, or "
        "name a model that has *.safetensors"
    )


def _unpickled(file: Path) -> dict[str, Any]:
    """Old weights: torch reads tensors and nothing that runs."""
    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as fault:
        raise unreadable(file, fault) from fault
