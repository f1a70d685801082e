"""The console that commands print on."""

from __future__ import annotations

from typing import Any

import rich.console

from .errors import printable

LEAST_WIDTH = 40


class Console(rich.console.Console):
    """A console that becomes silent when its pipe is closed, so that the command still writes its files.

    It has at least LEAST_WIDTH columns: with fewer Rich omits text, with none whole lines.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.width < LEAST_WIDTH:
            self.width = LEAST_WIDTH

    def on_broken_pipe(self) -> None:
        """Continue silently; Rich would end the process with 1. `main` meets the closed pipe again at the end."""
        self.quiet = True

    def say(self, text: str) -> None:
        """Print one line without wrapping or colours."""
        self.print(printable(text), highlight=False, markup=False, soft_wrap=True)
