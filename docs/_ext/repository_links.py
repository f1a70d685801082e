"""Links of included files: a link to an included file becomes a link to the page that includes it.

README.md, csrc/README.md and others are included, and link to each other by their paths in the repository. A link to
another file becomes a download; a link to a folder becomes plain text.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
# The included files and their pages.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "csrc/README.md": "architecture.md",
    "benchmarks/README.md": "performance.md",
    "tests/README.md": "contributing.md",
}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def rewrite(app: Sphinx, path: Path, parent: str, text: list[str]) -> None:
    """Replace the links of an included file in place: the handler of Sphinx's event `include-read`."""
    folder = Path(app.srcdir, path).resolve().parent
    page = Path(app.srcdir, app.env.docname).parent

    def replaced(match: re.Match[str]) -> str:
        image, words, address = match.groups()
        if re.match(r"[a-z]+:|#", address):
            return match[0]
        target = (folder / address.partition("#")[0]).resolve()
        if target.is_dir():
            return words
        inside = target.relative_to(ROOT).as_posix()
        if inside.startswith("examples/") and target.suffix == ".py":
            target = Path(app.srcdir, "gallery", target.stem + ".rst")
        elif inside in PAGES:
            target = Path(app.srcdir, PAGES[inside])
        return f"{image}[{words}]({os.path.relpath(target, page)})"

    text[0] = LINK.sub(replaced, text[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the handler."""
    app.connect("include-read", rewrite)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
