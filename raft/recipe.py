"""A recipe: the YAML file that says everything about a run, checked whole before anything heavy is loaded.

OmegaConf reads it (interpolation, `base: other.yaml`, dotted `key=value` overrides); then every section
is bound to the dataclass that does the work, and all faults are reported at once, each with its line.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raft.errors import UserError
from raft.jobs import DEFAULTS, JOBS, MAKES
from raft.plugins import Fault, build, suggest

OUTPUTS = Path("outputs")


@dataclass(frozen=True)
class Loaded:
    """A checked recipe, its resolved text as data, and the recipes that have to be run before it, in order."""

    recipe: Any
    config: dict[str, Any]
    path: Path
    needs: list["Loaded"]
    outputs: Path = OUTPUTS

    @property
    def folder(self) -> Path:
        """Where its run lives."""
        return self.outputs / self.recipe.name

    @property
    def resolved(self) -> str:
        """Its resolved text, which read again gives the same values."""
        from omegaconf import OmegaConf

        return OmegaConf.to_yaml(OmegaConf.create(_literal(self.config)))


class RecipeError(UserError):
    """Everything that is wrong with a recipe, one line each."""

    def __init__(self, path: Path, faults: Sequence[Fault], lines: dict[str, str]):
        self.faults = list(faults)
        rows = [f"  {_place(fault.key, lines, path)}: {fault.key}: {fault.message}" for fault in faults]
        count = "1 fault" if len(rows) == 1 else f"{len(rows)} faults"
        super().__init__("\n".join([f"{path}: {count}, nothing was started", *rows]))


def find(name: str) -> Path:
    """The file of a recipe: a path, or the name of one that comes with raft."""
    own = Path(__file__).parent / "recipes"
    folders = [own if own.is_dir() else Path(__file__).parent.parent / "recipes"]
    shipped = {str(file.relative_to(folders[0]).with_suffix("")): file for file in sorted(folders[0].rglob("*.yaml"))}
    if Path(name).is_file():
        return Path(name)
    if (key := name.removesuffix(".yaml").removeprefix("recipes/")) in shipped:
        return shipped[key]
    raise UserError(
        f"no recipe at {Path(name).absolute()}, and none of that name comes with raft; {suggest(key, list(shipped))}"
    )


def load(path: Path, overrides: Sequence[str] = (), variables: Mapping[str, Any] | None = None) -> Loaded:
    """The recipe of a file with `key=value` overrides. RecipeError lists every fault.

    `variables` are those of the recipe that needs it; each takes the place of the one of its name.
    """
    from raft.imports import beside

    config, lines = read_one(path, overrides, variables)
    faults: list[Fault] = []
    needs = dependencies(config, path, faults)
    job = config.get("job", "align")
    if job not in JOBS:
        raise RecipeError(path, [Fault("job", f"unknown job {job!r}; {suggest(str(job), list(JOBS))}")], lines)
    for name, default in DEFAULTS.get(job, {}).items():
        if isinstance(config.get(name, default), dict):
            config[name] = {**default, **config.get(name, default)}
    with beside(path):
        recipe = build(JOBS[job], config, "", faults)
    if faults:
        raise RecipeError(path, faults, lines)
    return Loaded(recipe, config, path, needs)


def read_one(
    path: Path, overrides: Sequence[str] = (), variables: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The resolved content of a YAML file, and where each of its keys stands."""
    lines: dict[str, str] = {}
    return _merged(path, list(overrides), variables or {}, lines), lines


def load_run(folder: Path, overrides: Sequence[str] = ()) -> Loaded:
    """The recipe that a run is made by, as it was resolved when the run began; its needs are already made.

    The name of a run is that of its folder, which may have been moved or renamed since.
    """
    import json

    from raft.imports import beside

    origin = Path(json.loads((folder / "run.json").read_text(encoding="utf-8"))["recipe"])
    with beside(origin):
        loaded = load(folder / "resolved.yaml", [f"name={json.dumps(folder.name, ensure_ascii=False)}", *overrides])
    return replace(loaded, path=origin if origin.exists() else folder / "recipe.yaml", outputs=folder.parent)


def speed_keys(part: Any, key: str = "") -> Iterator[str]:
    """The dotted keys of options that change only how fast a result is made."""
    for item in dataclasses.fields(part):
        below, value = f"{key}.{item.name}" if key else item.name, getattr(part, item.name)
        if item.metadata.get("speed"):
            yield below
        yield from (f"{below}.{name}" for name in item.metadata.get("speed_keys", ()))
        for name, one in value.items() if isinstance(value, dict) else ():
            if dataclasses.is_dataclass(one):
                yield from speed_keys(one, f"{below}.{name}")
        if dataclasses.is_dataclass(value):
            yield from speed_keys(value, below)


def _merged(path: Path, overrides: list[str], variables: Mapping[str, Any], lines: dict[str, str]) -> dict[str, Any]:
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for override in overrides:
        if "=" not in override:
            raise UserError(f"{override!r} is not an override; write key=value, for instance generator.k=4")
        lines[override.split("=", 1)[0]] = "command line"
    own = _read(path, lines)
    base = own.pop("base", None)
    layers = [OmegaConf.create(own)]
    if base is not None:
        beneath = _read(path.parent / str(base), lines)
        if "base" in beneath:
            raise UserError(
                f"{path.parent / str(base)}: a base has a base of its own; one level is allowed, "
                "so that a recipe stays readable"
            )
        layers.insert(0, OmegaConf.create(_without_replaced_kinds(beneath, own)))
    for override in overrides:  # a section that stands in no file is there because of an override
        lines.setdefault(override.split(".", 1)[0].split("=", 1)[0], "command line")
    try:
        merged = OmegaConf.merge(*layers, OmegaConf.from_dotlist(overrides))
        assert isinstance(merged, DictConfig)
        if variables and "variables" not in merged:
            merged.variables = {}
        for name, value in variables.items() if OmegaConf.is_dict(merged.get("variables")) else ():
            merged.variables[name] = _literal(value)
        return OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except OmegaConfBaseException as fault:
        raise UserError(f"{path}: {str(fault).splitlines()[0]} (key {getattr(fault, 'full_key', None)})") from None


def _read(path: Path, lines: dict[str, str]) -> dict[str, Any]:
    import yaml
    from omegaconf import OmegaConf

    try:
        text = path.read_text(encoding="utf-8")
        for key, line in _lines(yaml.compose(text, Loader=yaml.SafeLoader)):
            lines.setdefault(key, f"{path}:{line}")
        content = OmegaConf.to_container(OmegaConf.create(text))
    except FileNotFoundError:
        raise UserError(f"no recipe at {path.absolute()}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise UserError(f"{path}: not a YAML file ({' '.join(str(fault).split())})") from None
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: a recipe is a mapping of keys to values; this file has none")
    return content  # type: ignore[return-value]


def _lines(node: Any, key: str = "") -> Iterator[tuple[str, int]]:
    if node is None:
        return
    yield key, node.start_mark.line + 1
    if node.id == "mapping":
        for name, value in node.value:
            below = f"{key}.{name.value}" if key else str(name.value)
            yield from ((inner, line) for inner, line in _lines(value, below) if inner != below)
            yield below, name.start_mark.line + 1
    elif node.id == "sequence":
        for index, value in enumerate(node.value):
            yield from _lines(value, f"{key}[{index}]")


def _without_replaced_kinds(beneath: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A section that changes its kind replaces the one beneath: the options of one kind mean nothing to another."""
    kept = {}
    for name, value in beneath.items():
        above = own.get(name)
        if isinstance(value, dict) and isinstance(above, dict):
            if above.get("kind", value.get("kind")) != value.get("kind"):
                continue
            value = _without_replaced_kinds(value, above)
        kept[name] = value
    return kept


def dependencies(config: dict[str, Any], path: Path, faults: list[Fault]) -> list[Loaded]:
    """Loads each recipe named by a section, however deep, and puts the model that it makes in the place of its name.

    The variables of this recipe go down to those it needs, so that one override reaches them all.
    """
    needs: list[Loaded] = []
    variables = config.get("variables")
    shared = variables if isinstance(variables, Mapping) else {}
    for key, options in _naming(config):
        needed = load(path.parent / str(options.pop("recipe")), variables=shared)
        job = needed.recipe.job
        if job not in MAKES:
            message = f"{needed.path} is a job: {job}, which makes nothing to go on with; allowed: {', '.join(MAKES)}"
            faults.append(Fault(f"{key}.recipe", message))
            continue
        name, made = MAKES[job]
        if name in options:
            faults.append(Fault(f"{key}.recipe", f"give recipe or {name}, not both"))
            continue
        options[name] = str(needed.folder / made)
        for one in [*needed.needs, needed]:
            same = [
                other for other in needs if other.folder == one.folder and other.path.resolve() != one.path.resolve()
            ]
            if same or one.recipe.name == config.get("name"):
                message = f"{one.path} and {same[0].path if same else path} have the same name: {one.recipe.name}"
                faults.append(Fault(f"{key}.recipe", f"{message}; give each its own"))
            needs.append(one)
    return list({str(one.folder): one for one in needs}.values())


def _literal(value: Any) -> Any:
    """A resolved value so that resolving it once more gives the same one: no text in it is an interpolation."""
    if isinstance(value, dict):
        return {name: _literal(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_literal(one) for one in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _naming(config: dict[str, Any], key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The sections that name a recipe, each with its dotted key."""
    for name, options in config.items():
        if isinstance(options, dict) and name != "variables":
            below = f"{key}.{name}" if key else str(name)
            if options.get("recipe"):
                yield below, options
            yield from _naming(options, below)


def _place(key: str, lines: dict[str, str], path: Path) -> str:
    while key and key not in lines:
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    return lines.get(key, str(path))
