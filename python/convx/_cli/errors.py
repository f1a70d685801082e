"""What a command raises for its user, and the files that it writes."""

from __future__ import annotations

from pathlib import Path


class CommandError(Exception):
    """A message for the user of the command line: printed in one line, without a traceback."""


def prepare_folder(folder: Path) -> None:
    """Create `folder` where it does not exist, before a long computation finds out that it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"cannot create the folder {folder}: {error.strerror}") from None
