"""Hydra in, exit code out: what the commands share. Alone in printing errors."""

import json
import logging
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar

import yaml

from pipelines import config_folder
from pipelines.compose import checked, compose, few, read
from pipelines.config import Exit, RunConfig, RunFailed, UserError
from pipelines.config_folder import CONF, GROUPS
from pipelines.redact import redacted

__all__ = ["checked", "command", "command_of_few_keys", "command_with_keys", "compose", "failed", "refuse", "to_yaml"]

T = TypeVar("T")
log = logging.getLogger(__name__)

# The stable keys, and what they mean; a test keeps them equal to keys of the schema.
KEYS = {
    "source.uri": "the corpus: a local path or s3://bucket/prefix, one file or all below",
    "source.limit": "rows to do at most, in shard order; null: all",
    "source.include": "globs over paths below source.uri; source.exclude likewise",
    "source.columns": "input columns to carry into the output; null: all",
    "sink.uri": "the output: a local path or s3://bucket/prefix",
    "sink.retain_hours": "hours for which replaced files stay",
    "unit.rows": "rows that are read, answered and committed as one",
    "unit.bytes": "and their bytes at most, decoded",
    "engine.replicas": "engines: a number, or [min,max]",
    "model.path": "a Hub id, a folder, or s3://bucket/folder",
    "tracking.uri": "MLflow's store: a server, or sqlite:///FILE",
    "publish": "readers see what is done: auto, at once; gate, once it has passed",
    "on_change": "a changed job over an existing output: refuse, or reprocess",
    "on_deleted": "answers of shards that are gone: remove, or keep",
    "retry_errors": "true: ask dead letters again; or some types, [engine,timeout]",
    "budget.usd": "dollars for which to run at most; null: any",
    "budget.finish_by": "when to have ended: 2026-11-25T06:00Z, or after 6h; null: whenever",
    "max_error_rate": "share of rows, 0..1; above it: exit 3",
    "seed": "of sampling, where the job samples",
    "grace_s": "seconds after Ctrl-C or SIGTERM for what is in the engines",
}

EXITS = {
    Exit.DONE: "done",
    Exit.FAILED: "failed",
    Exit.USAGE: "bad usage or config; nothing was started",
    Exit.TOO_MANY_ERRORS: "done, but over max_error_rate, a shard was unreadable, or its gate kept it back",
    Exit.STOPPED: "stopped before the end; what was finished is committed, and the same command goes on",
}


_GOES_ON = "stopped: what was finished is committed, and the same command goes on"


def command(
    body: Callable[[RunConfig], Exit],
    *,
    doc: str,
    argv: Sequence[str] | None = None,
    keys: Mapping[str, str] = MappingProxyType({}),
    exits: Mapping[Exit, str] | None = None,
    stopped: str = _GOES_ON,
) -> NoReturn:
    """Compose conf/ with the command line, check it, run `body` on each job, exit with its code.

    Every job of a --multirun is checked before the first one starts; one that fails does not keep the others from
    running, one that is stopped does. The exit code is the first that is not 0. `doc` says in --help what it does,
    `keys` which keys it has of its own, `exits` what its codes mean; `stopped` is said after Ctrl-C.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        line = read(words)
        if line.help:
            print(_help(doc, line.config_dir, keys, EXITS if exits is None else exits))  # noqa: T201
            sys.exit(Exit.DONE)
        configs = compose(words)
        if line.show:
            print("---\n".join(to_yaml(config) for config in configs), end="")  # noqa: T201
            sys.exit(Exit.DONE)
    except UserError as error:
        sys.exit(refuse(error))
    except KeyboardInterrupt:
        _say("stopped: nothing was started")
        sys.exit(Exit.STOPPED)
    codes: list[Exit] = []
    for number, config in enumerate(configs, start=1):
        if len(configs) > 1:
            _say(f"job {number} of {len(configs)}: {config.tracking.run_name}, into {config.sink.uri}")
        codes.append(_ended(body, config, stopped=stopped))
        if codes[-1] is Exit.STOPPED:
            break
    sys.exit(next((code for code in codes if code), Exit.DONE))


def command_with_keys(
    body: Callable[[RunConfig, T], Exit],
    schema: type[T],
    *,
    doc: str,
    keys: Mapping[str, str],
    exits: Mapping[Exit, str],
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """A command that takes what a run takes, and keys of its own, which are no part of the run's config.

    `keys` are those of `schema`, and what they mean; `body` gets the run's config and them.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    own = [word for word in words if word.lstrip("+").split("=")[0] in keys]
    try:
        asked = few(own, schema)
    except UserError as error:
        sys.exit(refuse(error))
    rest = [word for word in words if word not in own]
    command(lambda config: body(config, asked), doc=doc, argv=rest, keys=keys, exits=exits, stopped="stopped")


def command_of_few_keys(
    body: Callable[[T], Exit],
    schema: type[T],
    *,
    doc: str,
    keys: Mapping[str, str],
    exits: Mapping[Exit, str],
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """A command that has no job: check its few keys against `schema`, run `body`, exit with its code.

    `doc`, `keys` and `exits` (each with its meaning) are what --help says.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if any(word in ("--help", "-h") for word in words):
        print("\n".join(_few_help(doc, keys, exits)))  # noqa: T201
        sys.exit(Exit.DONE)
    try:
        asked = few(words, schema)
    except UserError as error:
        sys.exit(refuse(error))
    sys.exit(_ended(body, asked, stopped="stopped"))


def refuse(error: UserError) -> Exit:
    """Print in one line what the user can mend."""
    _say(f"error: {error}")
    return Exit.USAGE


def failed(error: RunFailed) -> Exit:
    """Print in one line why a run that had begun has ended."""
    _say(f"failed: {error}")
    return Exit.FAILED


def to_yaml(config: RunConfig) -> str:
    """The config of a run as YAML, without secrets: what a person needs to do the run again."""
    plain = json.loads(json.dumps(asdict(config), default=str))
    return str(yaml.safe_dump(_without_secrets(plain), sort_keys=False, allow_unicode=True, width=120))


def _ended(body: Callable[[T], Exit], config: T, *, stopped: str) -> Exit:
    """Run one job. A bug keeps its traceback."""
    try:
        return body(config)
    except UserError as error:
        return refuse(error)
    except RunFailed as error:
        return failed(error)
    except KeyboardInterrupt:
        _say(stopped)
        return Exit.STOPPED


def _say(text: str) -> None:
    """One line on stderr, whatever is in it: no secrets, no line breaks, nothing that a terminal would obey."""
    line = re.sub(r"\s+", " ", redacted(text)).strip()
    print("".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line), file=sys.stderr, flush=True)  # noqa: T201


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_secrets(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_secrets(inner) for inner in value]
    return redacted(value) if isinstance(value, str) else value


def _help(
    doc: str,
    folder: Path | None = None,
    own: Mapping[str, str] = MappingProxyType({}),
    exits: Mapping[Exit, str] = EXITS,
) -> str:
    """What --help prints: the groups as conf/ has them, the keys with the defaults that conf/ gives them."""
    program = f"python -m {_module()}"
    defaults = _defaults()
    lines = [doc.strip(), "", f"usage: {program} +job=NAME [key=value …] [--config-dir DIR] [--multirun] [--cfg]", ""]
    lines += [f"  {words.format(program=program)}" for words in EXAMPLES]
    lines += ["", "groups: GROUP=OPTION chooses, GROUP.KEY=VALUE sets one value of what is chosen"]
    for group in GROUPS:
        names = [f"[{name}]" if name == defaults["chosen"].get(group) else name for name in _options(group, folder)]
        lines += textwrap.wrap(f"  {group:<10} {', '.join(names)}", 118, subsequent_indent=" " * 13)
    if own:
        lines += ["", "keys of this command", *(f"  {key:<44} {meaning}" for key, meaning in own.items())]
    lines += ["", "keys (with their defaults; pipelines/config.py has all)"]
    for key, meaning in KEYS.items():
        preset = f"{key}={defaults[key]}" if key in defaults else key
        lines.append(f"  {preset:<44} {meaning}")
    lines += ["", "flags"]
    lines += [f"  {flag:<16} {meaning}" for flag, meaning in FLAGS.items()]
    lines += ["", "exit codes"]
    lines += [f"  {int(code)} {meaning}" for code, meaning in exits.items()]
    return "\n".join(lines)


def _few_help(doc: str, keys: Mapping[str, str], exits: Mapping[Exit, str]) -> list[str]:
    lines = [doc.strip(), "", f"usage: python -m {_module()} key=value …", "", "keys"]
    lines += [f"  {key:<16} {meaning}" for key, meaning in keys.items()]
    return [*lines, "", "exit codes", *(f"  {int(code)} {meaning}" for code, meaning in exits.items())]


EXAMPLES = (
    "{program} +job=classify                                     # the demo corpus, the embedded model",
    "{program} +job=classify source.uri=s3://bucket/in sink.uri=s3://bucket/out source.limit=1000",
    "{program} +job=classify model=qwen3_8b precision=fp8 'engine.replicas=[1,8]'",
    "{program} +job=mine --config-dir my_conf                    # your own job: my_conf/job/mine.yaml",
    "{program} +job=classify --multirun batching=static,dynamic,continuous",
)

FLAGS = {
    "--config-dir DIR": "a folder of yours beside conf/: DIR/job/NAME.yaml, DIR/model/NAME.yaml, …",
    "--multirun, -m": "one run for each combination of values with commas, each into sink.uri/KEY=VALUE",
    "--cfg": "print the checked config and stop",
}


def _options(group: str, folder: Path | None) -> tuple[str, ...]:
    return config_folder.options(group, None if folder is None else config_folder.checked(folder))


def _defaults() -> dict[str, Any]:
    """Keys, dotted, with the value that conf/ gives them; under `chosen` the option that holds in each group."""
    top = yaml.safe_load((CONF / "config.yaml").read_text("utf-8"))
    chosen = {group: name for entry in top.pop("defaults") if isinstance(entry, dict) for group, name in entry.items()}
    found: dict[str, Any] = {"chosen": chosen}
    parts = {
        group: yaml.safe_load((CONF / group / f"{name}.yaml").read_text("utf-8"))
        for group, name in chosen.items()
        if group != "job"
    }
    for section, values in {**top, **parts}.items():
        inner = values.items() if isinstance(values, dict) else [(None, values)]
        found.update({section if key is None else f"{section}.{key}": _shown(value) for key, value in inner})
    return found


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub(r"\$\{oc\.env:\w+,([^}]*)\}", r"\1", value)
    return json.dumps(value)


def _module() -> str:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    name = str(spec.name) if spec else "pipelines.run"
    return name if name.startswith("pipelines.") else "pipelines.run"
