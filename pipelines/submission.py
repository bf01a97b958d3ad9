"""A run that is to be started elsewhere: the words that ask for it there, and what every elsewhere can do.

Words travel, values of the environment do not: what a store, MLflow or the Hub want to know is in the environment of
the pods or nodes. A word or a file in which something looks like a secret is refused, because manifests, runtime
environments and entrypoints are shown to whoever may look at a cluster.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pipelines import config_folder, storage
from pipelines.compose import read
from pipelines.config import Exit, RunConfig, UserError
from pipelines.engine_choice import Hardware
from pipelines.redact import redacted

Say = Callable[[str], None]
_END = re.compile(r"entrypoint: exit (\d+): ")  # what k8s/bin/entrypoint.py says last


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A run, as it is asked for."""

    config: RunConfig
    words: tuple[str, ...]  # of pipelines.run, without --config-dir
    files: Mapping[str, str]  # of the user's own folder, by their path in it
    name: str | None = None  # of the job there; None: it gets one

    def command(self, entrypoint: str, config_dir: str) -> list[str]:
        """The run's command line there; `entrypoint`: where k8s/bin/entrypoint.py lies, `config_dir`: the files."""
        own = ["--config-dir", config_dir] if self.files else []
        return ["python", entrypoint, "python", "-m", "pipelines.run", *self.words, *own]


class Remote(Protocol):
    """Where a run is started from afar. Errors that the user can mend are UserErrors; others, RunFailed."""

    @property
    def where(self) -> str: ...  # for people

    def hardware(self) -> Hardware: ...  # that an engine would have there

    def concerns(self) -> list[str]: ...  # what does not go well with the run there, a line each

    def rendered(self) -> str: ...  # what would be submitted, as YAML

    def difference(self) -> list[str]: ...  # of that and what was submitted last, or is there; a line each

    def submit(self, say: Say) -> None: ...  # refuses where a run of this name or on this output is at work

    def follow(self, say: Say) -> Exit: ...  # shows the log until the run has ended

    def status(self) -> list[tuple[str, str]]: ...  # label and text of each line

    def logs(self, say: Say) -> None: ...  # what there is by now

    def stop(self, say: Say) -> Exit: ...  # lets the run finish what is in its engines, and waits for its end


def submission(config: RunConfig, argv: Sequence[str], *, name: str | None = None) -> Submission:
    """What to submit of a command line whose own keys are taken out of it already.

    Raises:
        UserError: it names places of this machine, or holds what looks like a secret.
    """
    line = read(argv)
    _refuse_places_of_this_machine(config)
    for word in line.overrides:
        if redacted(word) != word:
            key = word.partition("=")[0]
            raise UserError(
                f"{key}=… holds what looks like a secret, and whoever sees the cluster's jobs would see it: give it to "
                "the pods or nodes by their environment instead (docs/operations.md)"
            )
    files = {} if line.config_dir is None else dict(_files(config_folder.checked(line.config_dir)))
    return Submission(config=config, words=line.overrides, files=files, name=name)


def _refuse_places_of_this_machine(config: RunConfig) -> None:
    for key, uri in (("source.uri", config.source.uri), ("sink.uri", config.sink.uri)):
        if not storage.is_s3(uri) and not Path(uri).is_absolute():
            raise UserError(
                f"{key}={uri} is a path below this folder, which no cluster has: say s3://bucket/prefix, or an "
                "absolute path that each of its nodes has"
            )


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    """The options in a user's folder, for the other side to compose from."""
    for group in config_folder.GROUPS:
        for file in sorted((folder / group).glob("*.yaml")):
            text = config_folder.text_of(file)
            if redacted(text) != text:
                raise UserError(f"{file} holds what looks like a secret: give it to the cluster by its environment")
            yield f"{group}/{file.name}", text


@dataclass(slots=True)
class LogReader:
    """Lines of a log that comes in pieces, and again from its beginning after a connection broke."""

    say: Say
    exit_code: int | None = None  # that entrypoint.py told last
    _seen: int = field(default=0)  # characters that were read
    _again: int = field(default=0)  # of those, how many have come once more
    _rest: str = field(default="")  # of a line whose end has not come

    def anew(self) -> None:
        """The next piece is the log's first one again."""
        self._again = 0

    def another(self) -> None:
        """What comes now is another log."""
        self.close()
        self._seen = 0

    def feed(self, piece: str) -> None:
        """Tell what is new of the next piece, line by line."""
        known = min(len(piece), self._seen - self._again)
        self._again += known
        fresh = piece[known:]
        self._seen += len(fresh)
        self._again += len(fresh)
        *lines, self._rest = (self._rest + fresh).split("\n")
        for line in lines:
            self._line(line)

    def close(self) -> None:
        """The log has ended."""
        if self._rest:
            self._line(self._rest)
        self._rest = ""

    def _line(self, line: str) -> None:
        if found := _END.search(line):
            self.exit_code = int(found[1])
        self.say(line.rstrip("\r"))


def exit_of(code: int) -> Exit:
    """A run's exit code; one that no run has (killed, not started) is a failure."""
    return Exit(code) if code in {int(known) for known in Exit} else Exit.FAILED


def changed(before: str, after: str) -> list[str]:
    """A unified diff without its header."""
    found = difflib.unified_diff(before.splitlines(), after.splitlines(), "there", "submitted", lineterm="", n=1)
    return [line for number, line in enumerate(found) if number > 1]
