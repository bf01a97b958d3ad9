"""A file system of its own size, for a disk that is full or read-only. Only root may make one."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Disk:
    """A small file system."""

    folder: Path

    def remount(self, how: str) -> None:
        """With other options: `size=64m`, `ro`, `rw`."""
        subprocess.run(["mount", "-o", f"remount,{how}", self.folder], check=True)


def possible() -> bool:
    """Whether this user may make one."""
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "faults", folder], capture_output=True)
        if made.returncode == 0:
            subprocess.run(["umount", folder], check=True)
        return made.returncode == 0


@contextmanager
def small_disk(folder: Path, *, kib: int) -> Iterator[Disk]:
    """A disk of `kib` KiB at `folder`, gone at the end."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "faults", folder], check=True)
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
