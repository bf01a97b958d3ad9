"""The folders that configs come from: conf/, and one of the user's own, whose files are read with more suspicion."""

from pathlib import Path
from typing import Any

import yaml
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf

from pipelines.config import UserError
from pipelines.config_keys import refuse_code

CONF = Path(__file__).resolve().parent.parent / "conf"
GROUPS = (
    "job", "model", "precision", "batching", "engine", "source", "sink", "tracking", "pricing", "alerts", "cluster",
)  # fmt: skip
MOST_BYTES = 2**20  # of one config file


def options(group: str, folder: Path | None = None) -> tuple[str, ...]:
    """The options of a group, sorted: the names of its files in conf/ and in the user's folder."""
    found = set(_names(CONF / group))
    if folder is not None:
        found |= set(_names(folder / group))
    return tuple(sorted(found))


def checked(folder: Path) -> Path:
    """The user's folder as an absolute path.

    Raises UserError if it is no folder, holds no group, or holds an option that conf/ has: one of the two would be
    silently ignored.
    """
    if not folder.is_dir():
        raise UserError(f"--config-dir {folder} is no folder; your own job is DIR/job/NAME.yaml")
    groups = [group for group in GROUPS if (folder / group).is_dir()]
    if not groups:
        here = f"; {folder.name}/ is one itself: give its parent" if folder.resolve().name in GROUPS else ""
        raise UserError(f"--config-dir {folder} holds no folder of a group ({', '.join(GROUPS)}){here}")
    for group in groups:
        for name in sorted(set(_names(folder / group)) & set(_names(CONF / group))):
            file = folder / group / f"{name}.yaml"
            raise UserError(
                f"{file} has the name of an option that ships with the house: rename it, then say {group}=NEW"
            )
    return folder.resolve()


def address(folder: Path) -> str:
    """The folder as Hydra's search path names it, so that `UserFolder` reads it."""
    Plugins.instance()  # fills the registry, which would otherwise forget the line below
    Plugins.instance().register(UserFolder)
    return f"{UserFolder.scheme()}://{folder}"


class UserFolder(ConfigSource):
    """Hydra's way to the files of a user's folder: each is looked through as it is read."""

    @staticmethod
    def scheme() -> str:
        return "user"

    def load_config(self, config_path: str) -> ConfigResult:
        file = self._file(config_path)
        text = text_of(file)
        header = ConfigSource._get_header_dict(text[:512])
        if (header.get("package") or "").startswith("hydra"):
            raise UserError(f"{file}: Hydra's own settings (@package {header['package']}) are not for use here")
        plain = plain_yaml(text, file)
        if "hydra" in plain or "hydra" in str(plain.get("defaults", "")):
            raise UserError(f"{file}: Hydra's own settings are not for use here; what can be set is in --help")
        refuse_code(plain, where=f"{file}: ")
        return ConfigResult(config=OmegaConf.create(text), path=self.full_path(), provider=self.provider, header=header)

    def available(self) -> bool:
        return Path(self.path).is_dir()

    def is_group(self, config_path: str) -> bool:
        return (Path(self.path) / config_path).is_dir()

    def is_config(self, config_path: str) -> bool:
        return self._file(config_path).is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        found: list[str] = []
        for file in sorted((Path(self.path) / config_path).iterdir()):
            path = str(file.relative_to(self.path))
            self._list_add_result(found, path, file.name, results_filter)
        return sorted(set(found))

    def _file(self, config_path: str) -> Path:
        file = Path(self.path) / self._normalize_file_name(config_path)
        if not file.resolve().is_relative_to(Path(self.path).resolve()):
            raise UserError(f"{file} leads out of --config-dir {self.path}")
        return file


def _names(folder: Path) -> list[str]:
    return [file.stem for file in folder.glob("*.yaml")] if folder.is_dir() else []


def text_of(file: Path) -> str:
    """What a config file holds. Raises UserError if that is too much, or no text."""
    if file.stat().st_size > MOST_BYTES:
        raise UserError(f"{file} has {file.stat().st_size} bytes: a config has at most {MOST_BYTES}")
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text (byte {error.start})") from None


def plain_yaml(text: str, file: Path | str) -> dict[Any, Any]:
    """What a YAML text holds, if it is plain: a tag could name code, an alias could multiply without bound."""
    try:
        for token in yaml.scan(text):
            if isinstance(token, yaml.TagToken | yaml.AliasToken | yaml.AnchorToken):
                kind = "tag" if isinstance(token, yaml.TagToken) else "alias"
                raise UserError(
                    f"{file} line {token.start_mark.line + 1}: a YAML {kind} is not allowed; write the value out"
                )
        plain = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(
            f"{file}{line} is not valid YAML: {getattr(error, 'problem', None) or 'cannot be read'}"
        ) from None
    except RecursionError:
        raise UserError(f"{file} is nested too deeply") from None
    if not isinstance(plain, dict):
        raise UserError(f"{file} holds no mapping of keys: see conf/ for examples")
    return plain
