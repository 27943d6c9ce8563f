"""A recipe: the YAML file that says everything about a run, checked whole before anything heavy is loaded.

OmegaConf reads it (interpolation, `base: other.yaml`, dotted `key=value` overrides); then every section
is bound to the dataclass that does the work, and all faults are reported at once, each with its line.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raft.config.jobs import DEFAULTS, JOB_OUTPUTS, JOBS
from raft.core import yaml_file
from raft.core.atomic import read_object
from raft.core.errors import UserError
from raft.core.given import AS_OBJECT
from raft.core.options import Fault, is_file, is_there, suggest
from raft.core.registry import build, sound
from raft.core.resume_command import to_resume
from raft.core.run_paths import OUTPUTS, RunPaths
from raft.core.terminal import is_unicode

OVERRIDE = re.compile(r"((?:[\w-]|\\.)+(?:\.(?:[\w-]|\\.)+)*)=(.*)", re.DOTALL)
SECRET = re.compile(r"oc\.env:\s*(\w*(?:KEY|TOKEN|SECRET|PASSW|CREDENTIAL)\w*)", re.IGNORECASE)
REFERENCE = re.compile(r"\$\{([^${}]*)\}")
COMMAND_LINE, ARGUMENT = GIVEN = ("command line", "argument")  # the place of a key that stands there, or in Python
LONGEST = 1_000_000  # characters of a recipe with its interpolations filled in
NO_SECTIONS = ("variables", "items", "args", "config", "meta")  # what is in these is data, not sections
ORIGINS = {  # of a model or of data: which keys of a recipe replace this one of its base
    "recipe": ("model", "config", "path"), "model": ("recipe", "config"), "config": ("recipe", "model"),
    "path": ("recipe",),
}  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    """A checked recipe, its resolved text as data, and the recipes that have to be run before it, in order."""

    recipe: Any
    config: dict[str, Any]
    path: Path
    needs: list["Loaded"]
    lines: dict[str, str]  # the place of each of its keys
    outputs: Path = OUTPUTS
    text: str | None = None  # of a recipe without a file
    overrides: tuple[str, ...] = ()
    python: bool = False  # whether Python asked for it, and perhaps gave objects that no command line has
    resumed: Path | None = None  # the run whose recipe it is, where no other file says it
    seeds: str | None = None  # of `raft run --seeds`, which makes runs of it

    @property
    def folder(self) -> Path:
        """Where its run lives."""
        return self.outputs / self.recipe.name

    @property
    def resolved(self) -> str:
        """Its resolved text, which read again gives the same values."""
        from omegaconf import OmegaConf

        return OmegaConf.to_yaml(OmegaConf.create(_literal(self.config)))

    def refused(self, faults: Sequence[Fault]) -> "RecipeError":
        """The error with these faults."""
        return RecipeError(self.path, faults, self.lines, resumed=self.resumed)


@dataclass(frozen=True)
class FromPython:
    """What only Python can give: a whole recipe as data, and sections, each built from the section that it replaces."""

    content: dict[str, Any] | None = None
    sections: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = field(default_factory=dict)

    @property
    def text(self) -> str | None:
        """The whole recipe as YAML."""
        import yaml

        return None if self.content is None else yaml.safe_dump(self.content, sort_keys=False, allow_unicode=True)


class RecipeError(UserError):
    """Everything that is wrong with a recipe, one line each; `sound` are its sections that have no fault.

    `config` is what it says as data. The recipe of a run that is `resumed` is in no file that one would edit.
    """

    def __init__(
        self,
        path: Path,
        faults: Sequence[Fault],
        lines: dict[str, str],
        sound: Mapping[str, Any] | None = None,
        needs: Sequence["Loaded"] = (),
        config: Mapping[str, Any] | None = None,
        resumed: Path | None = None,
    ):
        self.path, self.faults, self.lines = path, list(faults), lines
        self.sound, self.needs, self.config, self.resumed = sound or {}, needs, config or {}, resumed
        place = resumed or path
        rows = [f"  {_places(fault, lines, place)}: {fault.key}: {fault.message}" for fault in faults]
        if resumed is not None:
            rows += _ways_on(resumed, faults)
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__("\n".join([f"{place}: {count}, nothing was started", *rows]))

    def beside(self, more: Sequence[Fault]) -> "RecipeError":
        """The same error with more faults."""
        faults = [*self.faults, *more]
        return RecipeError(
            self.path, faults, self.lines, self.sound, self.needs, config=self.config, resumed=self.resumed
        )


def _ways_on(run: Path, faults: Sequence[Fault]) -> Iterator[str]:
    """What to do about the faults of the recipe of a run that is resumed."""
    objects = sum(AS_OBJECT in fault.message for fault in faults)
    if objects:
        yield f"pass its objects again from Python, here or in a branch: {to_resume(run)}"
    if objects < len(faults):
        others = "each of the others" if objects else "each of these"
        yield f"repeat the command with KEY=VALUE for {others}, or bring what is missing to its place"


def shipped() -> dict[str, Path]:
    """The recipes that come with raft, by name: installed with the package, or in its clone."""
    own = Path(__file__).parent.parent / "recipes"
    folder = own if own.is_dir() else Path(__file__).parents[2] / "recipes"
    return {str(file.relative_to(folder).with_suffix("")): file for file in sorted(folder.rglob("*.yaml"))}


def find(name: str) -> Path:
    """The file of a recipe: a path, or the name of a recipe that comes with raft."""
    known = shipped()
    if is_file(name):
        return Path(name)
    if (key := name.removesuffix(".yaml").removeprefix("recipes/")) in known:
        return known[key]
    if is_there(name):
        return Path(name)  # reading it says what else it is
    raise UserError(
        f"no recipe at {Path(name).absolute()}, and none of that name comes with raft; {suggest(key, list(known))}"
    )


def load(
    path: Path,
    overrides: Sequence[str] = (),
    variables: Mapping[str, Any] | None = None,
    above: tuple[Path, ...] = (),
    outputs: Path = OUTPUTS,
    given: FromPython | None = None,
    run: Path | None = None,
    origin: Path | None = None,
    launch: Any = None,
) -> Loaded:
    """The recipe of a file with `key=value` overrides. RecipeError lists every fault.

    `variables` are those of the recipe that needs it; each replaces the variable of its name. `launch` is that of the
    recipe that needs it, for one that has none. `above` are the recipes that need it, the outermost first. Where
    `given` is the recipe itself, other files are found from `path`. Of a `run` that is resumed, `origin` is the recipe
    beside which its own modules are found.
    """
    from raft.core.user_code import importable_from

    config, lines = read_one(path, overrides, variables, given)
    if run is not None:  # its resolved.yaml is raft's own
        lines = {key: place for key, place in lines.items() if not place.startswith(f"{path}:")}
    if launch is not None:
        config.setdefault("launch", launch)
    faults: list[Fault] = []
    faults += _odd(config)
    if faults:
        raise RecipeError(path, faults, lines, resumed=run)
    needs = dependencies(config, path, faults, (*above, path), outputs)
    job = config.get("job", "align")
    if not isinstance(job, str) or job not in JOBS:
        unknown = Fault("job", f"unknown job {job!r}; {suggest(str(job), list(JOBS))}")
        raise RecipeError(path, [unknown], lines, resumed=run)
    for name, default in DEFAULTS.get(job, {}).items():
        if isinstance(config.get(name, default), dict):
            config[name] = {**default, **config.get(name, default)}
    with importable_from(origin or path):
        recipe = build(JOBS[job], config, "", faults)
        if faults:
            faults = [_of_another_kind(fault, lines) for fault in faults]
            raise RecipeError(path, faults, lines, sound(JOBS[job], config), needs, config, run)
    text = given.text if given else None
    return Loaded(recipe, config, path, needs, lines, outputs, text, tuple(overrides), given is not None, run)


def read_one(
    path: Path,
    overrides: Sequence[str] = (),
    variables: Mapping[str, Any] | None = None,
    given: FromPython | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """The resolved content of a YAML file, and the place of each of its keys."""
    lines: dict[str, str] = {}
    return _merged(path, list(overrides), variables or {}, lines, given), lines


def read_resolved(folder: Path) -> dict[str, Any]:
    """The resolved recipe of a run, as data; nothing that it names is imported. UserError if it is damaged."""
    import yaml

    file = RunPaths(folder).resolved
    cure = "delete it; then raft run RECIPE, with the recipe that the run is made by, writes it again"
    try:
        text = yaml_file.read(file)
        content = yaml.safe_load(text)
    except UserError as fault:
        raise UserError(f"{file} is damaged: {fault}; {cure}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as fault:
        raise UserError(f"{file} is damaged: {' '.join(str(fault).split())[:120]}; {cure}") from None
    if not text.endswith("\n"):  # half of it may still be YAML, with fewer keys and half a value
        raise UserError(f"{file} is damaged: it is cut off; {cure}")
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged: it is not a mapping of keys to values; {cure}")
    return content


def load_run(folder: Path, overrides: Sequence[str] = (), given: FromPython | None = None) -> Loaded:
    """The recipe that a run is made by, as it was resolved when the run began; its needs are already made.

    The name of a run is that of its folder, which may have been moved or renamed since.
    """
    import json

    read_resolved(folder)  # half a file may still be a recipe
    path = begun_with(folder)
    named = f"name={json.dumps(folder.name, ensure_ascii=False)}"
    loaded = load(RunPaths(folder).resolved, [named, *overrides], given=given, run=folder, origin=path)
    words = (*_about(folder).get("overrides", ()), *overrides)
    return replace(loaded, path=path, outputs=folder.parent, overrides=words)


def begun_with(folder: Path) -> Path:
    """The recipe that a run was begun with: of a copy of all that is around the run, the one in the copy.

    Where that is not on this machine, it is the copy in the run.
    """
    known, own = _about(folder), RunPaths(folder).recipe
    recipe, began = (Path(str(known.get(name, own))) for name in ("recipe", "folder"))
    here = recipe.relative_to(began) if recipe.is_relative_to(began) else recipe
    return next((file for file in (here.absolute(), recipe) if is_file(str(file))), own)


def _about(folder: Path) -> dict[str, Any]:
    file = RunPaths(folder).about
    return read_object(file, f"delete {file}; then raft run RECIPE writes it again")


def speed_keys(part: Any, key: str = "") -> Iterator[str]:
    """The dotted keys of options that change only how fast a result is made."""
    for item in dataclasses.fields(part):
        below, value = f"{key}.{item.name}" if key else item.name, getattr(part, item.name)
        if item.metadata.get("speed"):
            yield below
        yield from (f"{below}.{name}" for name in item.metadata.get("speed_keys", ()))
        for name, entry in value.items() if isinstance(value, dict) else ():
            if dataclasses.is_dataclass(entry):
                yield from speed_keys(entry, f"{below}.{name}")
        if dataclasses.is_dataclass(value):
            yield from speed_keys(value, below)


def _merged(
    path: Path, overrides: list[str], variables: Mapping[str, Any], lines: dict[str, str], given: FromPython | None
) -> dict[str, Any]:
    from omegaconf import DictConfig, OmegaConf

    origin = COMMAND_LINE if given is None else ARGUMENT
    removed = [override[1:] for override in overrides if override.startswith("~")]
    overrides = [override for override in overrides if not override.startswith("~")]
    for override in overrides:
        lines[_check_override(override)] = origin
    lines.update(dict.fromkeys(given.sections if given else (), origin))
    own = _read(path, lines, given.text if given else None)
    base = own.pop("base", None)
    with _understood(path, lines):
        layers = [OmegaConf.create(own)]
    if base is not None:
        layers.insert(0, _beneath(path, base, own, lines))
    for override in overrides:  # a section that is in no file comes from an override
        lines.setdefault(override.split(".", 1)[0].split("=", 1)[0], origin)
    with _understood(path, lines):
        merged = OmegaConf.merge(*layers)
    for override in overrides:
        with _understood(f"override {override!r}", lines):
            merged = _overridden(merged, override, lines, origin)
    for key in removed:
        _remove(merged, key)
        _mark(key, None, lines, origin)
    with _understood(path, lines):
        assert isinstance(merged, DictConfig)
        for key, build in given.sections.items() if given else ():
            beneath = OmegaConf.select(merged, key)
            before: Any = OmegaConf.to_container(beneath) if OmegaConf.is_dict(beneath) else {}
            section = build(before)
            for name in [one for one in section if one not in before or before[one] != section[one]]:
                _mark(f"{key}.{name}", section[name], lines, origin)
            OmegaConf.update(merged, key, section, merge=False, force_add=True)
        if variables and "variables" not in merged:
            merged.variables = {}
        for name, value in variables.items() if OmegaConf.is_dict(merged.get("variables")) else ():
            merged.variables[name] = _literal(value)
        _bound(OmegaConf.to_container(merged), path)
        _refuse_secrets(OmegaConf.to_container(merged), path)
        return OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def _overridden(config: Any, override: str, lines: dict[str, str], origin: str) -> Any:
    """A recipe with an override: a whole section with its kind replaces what is there, all else is merged."""
    from omegaconf import OmegaConf

    given, key = OmegaConf.from_dotlist([override]), override.partition("=")[0]
    section, before = (value_at(OmegaConf.to_container(one), key.split(".")) for one in (given, config))
    if isinstance(section, dict) and "kind" in section and isinstance(before, dict):
        _remove(config, key)
        for below in [one for one in lines if _is_below(one, key)]:
            del lines[below]
    _mark(key, section, lines, origin)
    return OmegaConf.merge(config, given)


def _of_another_kind(fault: Fault, lines: dict[str, str]) -> Fault:
    """A fault with the way out for an option of the kind that a section had before the command line changed it."""
    section = fault.key.rpartition(".")[0]
    if not fault.message.startswith("unknown key") or lines.get(f"{section}.kind") != COMMAND_LINE:
        return fault
    if lines.get(fault.key) in (None, COMMAND_LINE):
        return fault
    return replace(fault, message=f"{fault.message}; it belongs to the kind before: '~{fault.key}' leaves it out")


def _remove(config: Any, key: str) -> None:
    """Takes a key out of a recipe, which then has its default. UserError: the recipe does not say it."""
    from omegaconf import OmegaConf

    section, _, name = key.rpartition(".")
    inner = OmegaConf.select(config, section) if section else config
    if not OmegaConf.is_dict(inner) or name not in inner:
        known = [str(one) for one in inner] if OmegaConf.is_dict(inner) else []
        raise UserError(f"~{key}: the recipe has no such key, so it cannot be left out; {suggest(name, known)}")
    del inner[name]


def _check_override(override: str) -> str:
    """The key of an override. UserError: it is not of the form key=value, or its value is not YAML on one line."""
    match = OVERRIDE.fullmatch(override)
    if match is None:
        raise UserError(
            f"{override!r} is not an override; write key=value, for instance generator.k=4, or ~key to leave a key out"
        )
    try:
        override.encode()
    except UnicodeEncodeError:
        raise UserError(f"{override!r}: not UTF-8; set the terminal's encoding to UTF-8") from None
    if not match[2].isprintable():
        raise UserError(f"{override!r}: the value holds a line break or a control character; write it in YAML's quotes")
    yaml_file.lines(match[2], f"the value of {override!r}")
    return match[1]


def _beneath(path: Path, base: Any, own: dict[str, Any], lines: dict[str, str]) -> Any:
    """The layer of the base, without what the recipe itself replaces."""
    from omegaconf import OmegaConf

    if not isinstance(base, str) or not base:
        raise UserError(f"{path}: base: {base!r} is not a file; name a YAML file beside this one")
    file = path.parent / base
    content = _read(file, lines)
    if "base" in content:
        raise UserError(f"{file}: a base has a base of its own; one level is allowed, which keeps recipes readable")
    if unlike := next(_unlike(content, own), None):
        raise UserError(f"{path}: {unlike} is a mapping here or in its base {file}, but not in both; make them alike")
    with _understood(file, lines):
        return OmegaConf.create(_without_replaced(content, own))


def _unlike(beneath: dict[str, Any], own: dict[str, Any], key: str = "") -> Iterator[str]:
    """The dotted keys that hold a mapping in one of the two and a text, a number or a list in the other."""
    for name in [name for name in own if beneath.get(name) is not None and own[name] is not None]:
        below = f"{key}.{name}" if key else str(name)
        mappings = [isinstance(side[name], dict) for side in (beneath, own)]
        if all(mappings):
            yield from _unlike(beneath[name], own[name], below)
        elif any(mappings):
            yield below


@contextmanager
def _understood(path: Path | str, lines: dict[str, str]) -> Iterator[None]:
    """Turns what OmegaConf raises inside the block, which is of many classes, into a UserError with the place."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except UserError:
        raise
    except RecursionError:
        raise UserError(f"{path}: an interpolation ${{...}} leads back to itself, or sections are too deep") from None
    except Exception as fault:
        key = getattr(fault, "full_key", None) if isinstance(fault, OmegaConfBaseException) else None
        reason = (str(fault).splitlines() or [type(fault).__name__])[0]
        place = _place(str(key), lines, path) if key and isinstance(path, Path) else path
        raise UserError(f"{place}: {f'{key}: ' if key else ''}{reason}") from None


def _bound(content: Any, path: Path) -> None:
    """UserError if the content, its interpolations filled in, is too large to be what anybody meant."""
    sizes: dict[str, float] = {}

    def size(value: Any, place: tuple[str, ...]) -> float:
        if isinstance(value, dict):
            return 1 + sum(size(item, (*place, str(name))) for name, item in value.items())
        if isinstance(value, list):
            return 1 + sum(size(item, (*place, str(index))) for index, item in enumerate(value))
        text = value if isinstance(value, str) else ""
        return 1 + len(text) + sum(referred(match[1], place) for match in REFERENCE.finditer(text))

    def referred(name: str, place: tuple[str, ...]) -> float:
        up = len(name) - len(name.lstrip("."))
        parts = re.findall(r"[^.\[\]]+", name)
        target = (*place[: len(place) - up], *parts) if up else tuple(parts)
        key = ".".join(target)
        if key not in sizes:
            sizes[key] = 0  # OmegaConf reports a reference to itself
            sizes[key] = size(value_at(content, target), target)
        return sizes[key]

    if size(content, ()) > LONGEST:
        raise UserError(f"{path}: with its interpolations ${{...}} filled in it has more than {LONGEST:,} characters")


def _refuse_secrets(content: Any, path: Path) -> None:
    """UserError if a value is that of an environment variable with a secret: resolved.yaml would hold it."""
    for name in (match[1] for match in SECRET.finditer(str(content))):
        raise UserError(
            f"{path}: ${{oc.env:{name}}} would write a secret into the run's folder; leave it in the environment, "
            "and give the name of the variable where an option asks for it (api_key_env)"
        )


def value_at(content: Any, place: Sequence[str]) -> Any:
    """What a recipe says at a key, given as its parts; None where it says nothing."""
    for name in place:
        if isinstance(content, list):
            content = content[int(name)] if name.isdecimal() and int(name) < len(content) else None
        else:
            content = content.get(name) if isinstance(content, dict) else None
    return content


def _odd(value: Any, key: str = "") -> Iterator[Fault]:
    """Values that no artifact's key could hold: numbers that are not finite, mixed keys, halves of characters."""
    if isinstance(value, float) and not math.isfinite(value):
        yield Fault(key, f"{value} is not a finite number")
    if isinstance(value, str) and not is_unicode(value):
        yield Fault(key, f"{value!r} holds half a character, which cannot be written as UTF-8")
    if isinstance(value, dict):
        if len({isinstance(name, str) for name in value}) == 2 or not all(is_unicode(str(name)) for name in value):
            yield Fault(key, f"the keys {', '.join(map(repr, value))} are not all text; put quotes around each")
        for name, item in value.items():
            yield from _odd(item, f"{key}.{name}" if key else str(name))
    for index, item in enumerate(value if isinstance(value, list) else ()):
        yield from _odd(item, f"{key}[{index}]")


def _read(path: Path, lines: dict[str, str], text: str | None = None) -> dict[str, Any]:
    """The content of a file, or of a recipe without a file, whose keys have no lines."""
    from omegaconf import OmegaConf

    in_file, text = text is None, yaml_file.read(path) if text is None else text
    keys = yaml_file.lines(text, str(path))
    if all(key.startswith("[") for key in keys if key):
        raise UserError(f"{path}: a recipe is a mapping of keys to values; this file has none")
    for key, line in keys.items() if in_file else ():
        lines.setdefault(key, f"{path}:{line}")
    with _understood(path, lines):
        return OmegaConf.to_container(OmegaConf.create(text))  # type: ignore[return-value]


def _without_replaced(beneath: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """What of a base stays beneath a recipe.

    A section that changes its kind replaces that of the base: the options of one kind mean nothing to another. So does
    where a model comes from: its recipe, its folder or its config.
    """
    kept = {}
    for name, value in beneath.items():
        above = own.get(name)
        if any(own.get(other) is not None for other in ORIGINS.get(name, ())):
            continue
        if isinstance(value, dict) and isinstance(above, dict):
            if above.get("kind", value.get("kind")) != value.get("kind"):
                continue
            value = _without_replaced(value, above)
        kept[name] = value
    return kept


def dependencies(
    config: dict[str, Any],
    path: Path,
    faults: list[Fault],
    above: tuple[Path, ...] = (),
    outputs: Path = OUTPUTS,
) -> list[Loaded]:
    """Loads each recipe that a section names, at any depth, and replaces its name by the model that it makes.

    The variables and the launch of this recipe are passed to those it needs, so an override of them reaches all.
    UserError if recipes need each other; `above` are this one and those that need it.
    """
    needs: list[Loaded] = []
    variables = config.get("variables")
    shared = variables if isinstance(variables, Mapping) else {}
    for key, options in _naming(config):
        name = options.pop("recipe")
        if name is None:
            continue
        if not isinstance(name, str) or not name:
            faults.append(Fault(f"{key}.recipe", f"{name!r} is not a file; name a recipe, by its path from here"))
            continue
        file = path.parent / name
        if file.resolve() in [outer.resolve() for outer in above]:
            raise UserError(f"recipes need each other: {' needs '.join(map(str, [*above, file]))}; break the cycle")
        needed = load(file, variables=shared, above=above, outputs=outputs, launch=config.get("launch"))
        job = needed.recipe.job
        if job not in JOB_OUTPUTS:
            message = (
                f"{needed.path} is a job: {job}, whose result no recipe can use; allowed: {', '.join(JOB_OUTPUTS)}"
            )
            faults.append(Fault(f"{key}.recipe", message))
            continue
        name, output = JOB_OUTPUTS[job]
        if options.get(name) is not None:
            both = f"give recipe or {name}, not both; take out the other one: {key}.recipe=null or {key}.{name}=null"
            faults.append(Fault(f"{key}.recipe", both))
            continue
        options[name] = str(needed.folder / output)
        for other in [*needed.needs, needed]:
            same = [
                known
                for known in needs
                if known.folder == other.folder and known.path.resolve() != other.path.resolve()
            ]
            if same or other.recipe.name == config.get("name"):
                message = f"{other.path} and {same[0].path if same else path} have the same name: {other.recipe.name}"
                faults.append(Fault(f"{key}.recipe", f"{message}; give each its own"))
            needs.append(other)
    return list({str(other.folder): other for other in needs}.values())


def _literal(value: Any) -> Any:
    """A resolved value so that resolving it once more gives the same one: no text in it is an interpolation."""
    if isinstance(value, dict):
        return {name: _literal(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_literal(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _naming(section: Any, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The sections that name a recipe, each with its dotted key."""
    named = section.items() if isinstance(section, dict) else ()
    listed = enumerate(section) if isinstance(section, list) else ()
    below = [(f"{key}.{name}" if key else str(name), item) for name, item in named if name not in NO_SECTIONS]
    for place, options in [*below, *((f"{key}[{index}]", item) for index, item in listed)]:
        if isinstance(options, dict) and "recipe" in options:
            yield place, options
        yield from _naming(options, place)


def _place(key: str, lines: dict[str, str], path: Path) -> str:
    while key and key not in lines:
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    return lines.get(key, str(path))


def _places(fault: Fault, lines: dict[str, str], path: Path) -> str:
    """The place of the key of a fault; where that is in a file, also the command line, or the call from Python.

    Those have a part in it if they give a key below that of the fault, or one that its message names.
    """
    place = _place(fault.key, lines, path)
    keys = {key: origin for key, origin in lines.items() if origin in GIVEN}
    given = {origin for key, origin in keys.items() if _is_below(key, fault.key) or _names(fault.message, key)}
    return ", ".join([place, *(given - {place})])


def _names(message: str, key: str) -> bool:
    """Whether a message names a dotted key; a key of one word may be any word."""
    return "." in key and re.search(rf"(?<![\w.]){re.escape(key)}(?!\.?\w)", message) is not None


def _is_below(key: str, section: str) -> bool:
    return key.startswith((f"{section}.", f"{section}["))


def _mark(key: str, value: Any, lines: dict[str, str], origin: str) -> None:
    """Makes an origin the place of a key with this value, and of all that is below it."""
    if isinstance(value, dict) and value:
        lines.setdefault(key, origin)
        for name, one in value.items():
            _mark(f"{key}.{name}", one, lines, origin)
        return
    for below in [one for one in lines if _is_below(one, key)]:
        del lines[below]
    lines[key] = origin
