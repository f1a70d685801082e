"""What a command raises for its user, and the places that it writes to."""

from __future__ import annotations

from pathlib import Path


class CommandError(Exception):
    """A message for the user of the command line: printed in one line, without a traceback."""


def prepare_file(path: Path) -> None:
    """Make the folder of a file to be written, and see that the file is none itself."""
    prepare_folder(path.parent)
    if path.is_dir():
        raise CommandError(f"cannot write {path}: it is a folder")


def prepare_folder(folder: Path) -> None:
    """Create `folder` where it does not exist, before a long computation finds out that it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"cannot create the folder {folder}: {error.strerror}") from None
