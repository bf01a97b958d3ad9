"""From conf/, a folder of the user's own and the command line to checked RunConfigs; alone in knowing Hydra.

Hydra composes and does nothing else here: `@hydra.main` would run callbacks, launchers and logging factories that a
config names. What a config could reach beyond data is refused by name: Hydra's own settings, keys like `_target_`,
resolvers other than a few environment variables, YAML tags and aliases.
"""

import itertools
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from pipelines import config_folder, config_keys
from pipelines.config import RunConfig, UserError
from pipelines.config_folder import CONF, GROUPS

MOST_JOBS = 1000  # of one --multirun
SHOWN_ENV = ("AWS_REGION", "AWS_DEFAULT_REGION", "HOME", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "TMPDIR", "USER")
T = TypeVar("T")
_UNSAFE = re.compile(r"[^A-Za-z0-9._=,-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """What stands behind the command's name."""

    overrides: tuple[str, ...]
    config_dir: Path | None = None
    multirun: bool = False
    help: bool = False
    show: bool = False  # print the composed config instead of running it


def read(argv: Sequence[str]) -> CommandLine:
    """Tell flags from overrides. Raises UserError for a flag that does not exist."""
    overrides: list[str] = []
    given: dict[str, Any] = {}
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            overrides.append(word)
        elif name in ("--config-dir", "-cd"):
            folder = value if equals else next(words, "")
            if not folder:
                raise UserError("--config-dir needs a folder: --config-dir DIR, with your own job in DIR/job/NAME.yaml")
            given["config_dir"] = Path(folder)
        elif word in ("--multirun", "-m"):
            given["multirun"] = True
        elif word in ("--help", "-h"):
            given["help"] = True
        elif word == "--cfg":
            given["show"] = True
        else:
            flags = ("--config-dir", "--multirun", "--cfg", "--help")
            near = config_keys.nearest(name, flags)
            raise UserError(f"there is no option {name}{near}; there are {', '.join(flags)}, all else is key=value")
    return CommandLine(overrides=tuple(overrides), **given)


def compose(argv: Sequence[str]) -> list[RunConfig]:
    """The checked config of each job that a command line asks for: one, or with --multirun one for each combination.

    Raises UserError, in one line, before anything is started: for the first thing that is wrong in any of the jobs.
    """
    line = read(argv)
    folder = None if line.config_dir is None else config_folder.checked(line.config_dir)
    options = {group: config_folder.options(group, folder) for group in GROUPS}
    overrides = [_parsed(text, options) for text in line.overrides]
    if not any(override.key_or_group == "job" for override in overrides):
        raise UserError(f"no job: say +job=NAME, one of {', '.join(options['job'])}; --help explains")
    jobs = list(itertools.islice(_combinations(overrides, options), MOST_JOBS + 1))
    if len(jobs) > MOST_JOBS:
        raise UserError(f"--multirun would run more than {MOST_JOBS} jobs: give fewer values")
    if len(jobs) > 1 and not line.multirun:
        several = next(override for override in overrides if override.is_sweep_override())
        raise UserError(
            f"{several.input_line} is more than one value: add --multirun to run each, write [a,b] for a list, or put "
            "quotes around a text with commas"
        )
    multirun = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(3)}"
    configs = [_composed(values, label, folder, multirun) for values, label in jobs]
    seen = set()
    for config in configs:
        if config.sink.uri in seen:
            raise UserError(
                f"two jobs of this --multirun would write to {config.sink.uri}: let sink.uri differ as well"
            )
        seen.add(config.sink.uri)
    return configs


def few(argv: Sequence[str], schema: type[T]) -> T:
    """The checked keys of a command that has a few of its own and composes nothing: `key=value …`, in `schema`.

    Raises UserError, in one line, for the first thing that is wrong.
    """
    plain: dict[str, Any] = {}
    for key in config_keys.leaves(schema):  # so that of a missing key all is told: sink.uri, not sink
        if "." in key:
            plain.setdefault(key.split(".")[0], {})
    for text in argv:
        override = _override(text, "" if "=" in text else config_keys.nearest_key(text, schema))
        key = override.key_or_group
        config_keys.refuse_unknown(key, text.partition("=")[2], schema)
        if override.is_sweep_override() or isinstance(override.value(), dict):
            raise UserError(f"{text} is more than one value: put quotes around a text with commas")
        *above, last = key.split(".")
        place = plain
        for part in above:
            place = place.setdefault(part, {})
        place[last] = override.value()
    return _typed(plain, schema)


def recorded(text: str, where: str) -> RunConfig:
    """The config of a run as `to_yaml` wrote it down, checked like any other. `where`: its file, for errors.

    Raises UserError for whatever the schema refuses.
    """
    plain = config_folder.plain_yaml(text, where)
    config_keys.refuse_code(plain, where=f"{where}: ")
    try:
        return _typed(plain, RunConfig)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def checked(composed: DictConfig) -> RunConfig:
    """The composed config as frozen dataclasses.

    Raises UserError, naming key, value and the nearest right one, for whatever the schema or `RunConfig` refuses.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise UserError(f"{missing[0]} is missing: say {missing[0]}=…")
        plain = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(_interpolation(error)) from None
    config_keys.refuse_code(plain)
    return _typed(plain, RunConfig)


def _typed(plain: Any, schema: type[T]) -> T:
    try:
        # As JSON, in strict mode: lists become tuples, but "4" does not become 4, nor true 1.
        return TypeAdapter(schema).validate_json(json.dumps(plain), strict=True)
    except ValidationError as error:
        raise UserError(config_keys.first_error(error, plain)) from None
    except TypeError as error:
        raise UserError(f"the config holds what is neither text, number, list nor mapping: {error}") from None


def _parsed(text: str, options: dict[str, tuple[str, ...]]) -> Override:
    """One word of the command line, with a key or a group that exists."""
    hint = f": did you mean +job={text}?" if text in options["job"] else ""
    override = _override(text, hint or ("" if "=" in text else config_keys.nearest_key(text)))
    key, value = override.key_or_group, text.partition("=")[2]
    if key.split(".")[0].split("/")[0] == "hydra" or override.package is not None:
        raise UserError(f"{text}: Hydra's own settings are not for use here; what can be set is in --help")
    if key in GROUPS:
        _refuse_option(key, override, options[key])
    else:
        config_keys.refuse_unknown(key, value)
    return override


def _override(text: str, hint: str) -> Override:
    """One word in Hydra's grammar. `hint`: what to say if it is no key=value."""
    if "=" not in text:
        raise UserError(f"cannot read {text!r} as key=value{hint}")
    if text.startswith("~"):
        raise UserError(f"{text}: nothing can be taken out of the config; write key=null where a key may be null")
    try:
        return OverridesParser.create().parse_override(text)
    except (HydraException, RecursionError):
        raise UserError(f"cannot read the value of {text!r}: put it in quotes, as in 'key=\"a b\"'") from None


def _refuse_option(group: str, override: Override, options: tuple[str, ...]) -> None:
    """Raise UserError unless every value given for a group is one of its options."""
    for value in _values(override, options):
        if value not in options:
            near = config_keys.nearest(str(value), options)
            raise UserError(f"there is no {group}={value}{near}; there are {', '.join(options)}")


def _values(override: Override, options: Sequence[str] = ()) -> Iterator[Any]:
    """The values of an override, one unless it is a sweep, as plain Python values."""
    if override.value_type is ValueType.INTERVAL_SWEEP:
        raise UserError(f"{override.input_line}: an interval has no end of values; list them, or use range(a,b,step)")
    if override.value_type is ValueType.GLOB_CHOICE_SWEEP:
        glob: Any = override.value()
        yield from glob.filter(list(options))
    elif override.is_sweep_override():
        for value in override.sweep_iterator():
            yield value.text if isinstance(value, QuotedString) else value
    else:
        yield override.value()


def _combinations(
    overrides: Sequence[Override], options: dict[str, tuple[str, ...]]
) -> Iterator[tuple[list[str], tuple[str, ...]]]:
    """For each job its overrides as Hydra reads them, and what sets it apart, such as `batching=static`."""
    choices: list[list[tuple[str, str | None]]] = []
    for override in overrides:
        key, group = override.key_or_group, override.key_or_group in GROUPS
        # `++` sets a key whether or not the chosen option happens to spell it out; the schema has the last word.
        name = key if group else f"++{key}"
        if not override.is_sweep_override():
            choices.append([(f"{name}={override.get_value_element_as_str()}", None)])
            continue
        values = list(itertools.islice(_values(override, options.get(key, ())), MOST_JOBS + 1))
        apart = len(values) > 1
        choices.append(
            [(f"{name}={_written(value)}", f"{key}={value}" if apart else None) for value in values],
        )
    for combination in itertools.product(*choices):
        yield [text for text, _ in combination], tuple(label for _, label in combination if label)


def _written(value: Any) -> str:
    """A value in Hydra's grammar."""
    return Override._get_value_element_as_str(QuotedString(value, Quote.single) if isinstance(value, str) else value)


def _composed(overrides: list[str], label: tuple[str, ...], folder: Path | None, multirun: str) -> RunConfig:
    """Compose one job, closed to all but data, and check it. `label` tells it from the others of a --multirun."""
    words = list(overrides)
    if folder is not None:
        words.append(f"hydra.searchpath=[{QuotedString(config_folder.address(folder), Quote.single).with_quotes()}]")
    try:
        with initialize_config_dir(str(CONF), job_name="pipelines", version_base="1.3"):
            _close_resolvers()
            composed = hydra_compose("config", words)
    except (HydraException, OmegaConfBaseException, RecursionError) as error:
        raise UserError(_first_line(error)) from None
    if not isinstance(composed.get("job"), DictConfig):
        raise UserError("the job is not a mapping of keys: see conf/job/ for examples")
    OmegaConf.set_struct(composed, False)
    if "name" not in composed.job:
        name = next(word for word in reversed(overrides) if word.startswith("job=")).partition("=")[2]
        composed.job.name = name.strip("'")
    if label:
        composed.tracking.experiment = composed.tracking.experiment  # as it reads before each has an output of its own
        composed.tracking.multirun = composed.tracking.get("multirun") or multirun
    if label and not any(part.startswith("sink.uri=") for part in label):
        composed.sink.uri = f"{str(composed.sink.uri).rstrip('/')}/{_UNSAFE.sub('_', ','.join(label))}"
    if label and composed.tracking.get("run_name") is None:
        composed.tracking.run_name = ",".join(label)
    return checked(composed)


def _close_resolvers() -> None:
    """Leave of OmegaConf's and Hydra's resolvers only `oc.env`, and of the environment only what is no secret."""
    OmegaConf.clear_resolvers()
    for name in ("oc.create", "oc.decode", "oc.deprecated", "oc.dict.keys", "oc.dict.values", "oc.select"):
        OmegaConf.clear_resolver(name)
    OmegaConf.register_new_resolver("oc.env", _env, replace=True)


def _env(name: str, *default: str | None) -> str | None:
    """The resolver behind ${oc.env:NAME,default}."""
    if name not in SHOWN_ENV:
        raise UserError(f"${{oc.env:{name}}} is not read: a config may read {', '.join(SHOWN_ENV)} only")
    if name not in os.environ and not default:
        raise UserError(f"${{oc.env:{name}}}: the variable is not set; set it, or write ${{oc.env:{name},default}}")
    return os.environ.get(name, *default)


def _interpolation(error: OmegaConfBaseException) -> str:
    """What is wrong with a `${…}`, in a line."""
    key = f"{error.full_key}: " if error.full_key else ""
    said = _first_line(error)
    ours = said.removeprefix("UserError raised while resolving interpolation: ")
    return f"{key}{ours}" if ours != said else f"{key}{said}; a literal ${{ is written \\${{"


def _first_line(error: BaseException) -> str:
    """The first line of an error of Hydra or OmegaConf: the rest is its search path and links."""
    if isinstance(error, RecursionError):
        return "the config is nested too deeply"
    cause = error.__cause__ if not str(error).strip() and error.__cause__ else error
    return next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
