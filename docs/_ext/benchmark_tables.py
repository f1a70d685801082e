"""Tables and plots of the newest results in benchmarks/results, read when the documentation is built.

    ```{benchmark-table} layers
    :table: classes
    :columns: class, pass, geomean
    ```

    ```{benchmark-plot} layers ratio-conv2d
    ```

The first word is the command of `python -m benchmarks`, whose newest file is taken. `table` is `classes` (ratios by
class of layer), `lists` (all layers of a network together), `steps` (training steps) or `saved` (bytes kept for the
backward pass, layer by layer); `columns` picks from those that `python -m benchmarks report` prints, all by default.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from rich.table import Table
from rich.text import Text
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import OptionSpec

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import report, training  # noqa: E402 - the checkout's package, which is not installed
from benchmarks.results import FOLDER, Results  # noqa: E402

TABLES: dict[str, Callable[[Results], list[object]]] = {
    "classes": lambda results: [report.class_summary(results)],
    "lists": lambda results: [report.network_summary(results)],
    "steps": lambda results: training.tables(results)[:1],
    "saved": lambda results: training.tables(results)[1:],
}


def newest(kind: str) -> Path | None:
    """Return the file of the latest run of this command, by the date in its name."""
    found = ((re.search(r"\d{4}-\d\d-\d\d", path.name), path) for path in FOLDER.glob(f"*-{kind}.json"))
    dated = [(date[0], path) for date, path in found if date]
    return max(dated, default=(None, None))[1]


class BenchmarkTable(SphinxDirective):
    """Draw tables of `python -m benchmarks report` as tables of the page."""

    required_arguments = 1
    option_spec: ClassVar[OptionSpec] = {
        "table": lambda name: directives.choice(name, TABLES),
        "columns": directives.unchanged,
    }

    def run(self) -> list[nodes.Node]:
        """Read the file and make the tables; say so where the command has not been run."""
        kind = self.arguments[0]
        path = newest(kind)
        if path is None:
            return [nodes.paragraph("", f"Not measured yet: python -m benchmarks {kind} makes this table.")]
        self.env.note_dependency(str(path))
        results = Results.load(path)
        parts = TABLES[self.options.get("table", "classes")](results)
        made = (self.drawn(part) if isinstance(part, Table) else nodes.paragraph("", str(part)) for part in parts)
        return [self.described(results), *made]

    def described(self, results: Results) -> nodes.paragraph:
        """Say when, on what and with how many threads."""
        about = results.about
        text = (
            f"{about['date'][:10]}, {about['machine']['cpu']}, {about['settings']['threads']} threads, "
            f"load average {about['machine']['load_average']:.1f} before: "
        )
        return nodes.paragraph("", text, nodes.literal("", about["command"]), classes=["benchmarks"])

    def drawn(self, table: Table) -> nodes.table:
        """Turn a table for the terminal into one of the page."""
        columns = {plain(column.header): column for column in table.columns}
        names = [name.strip() for name in self.options.get("columns", "").split(",") if name.strip()] or [*columns]
        if unknown := [name for name in names if name not in columns]:
            raise self.error(f"no column {', '.join(unknown)}: there are {', '.join(columns)}")
        sides = [f"text-{columns[name].justify}" for name in names]
        rows = zip(*(map(plain, columns[name].cells) for name in names), strict=True)

        made = nodes.table(classes=["benchmarks"])
        group = nodes.tgroup(cols=len(names))
        head, body = nodes.thead("", row_of(names, sides)), nodes.tbody()
        body += [row_of(row, sides) for row in rows]
        group += [*(nodes.colspec(colwidth=1) for _ in names), head, body]
        made += group
        return made


def plain(value: object) -> str:
    """Return a cell's text without its colours."""
    return value.plain if isinstance(value, Text) else str(value)


def row_of(values, sides) -> nodes.row:
    """Make one row, each entry on the side that its column has in the terminal."""
    row = nodes.row()
    for value, side in zip(values, sides, strict=True):
        row += nodes.entry("", nodes.paragraph("", value), classes=[side])
    return row


class BenchmarkPlot(SphinxDirective):
    """Show a plot that the newest run of a command has drawn."""

    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        """Make the image; nothing where the command has not been run."""
        kind, name = self.arguments
        path = newest(kind)
        if path is None:
            return []
        plot = path.with_name(f"{path.stem}-{name}.png")
        if not plot.exists():
            raise self.error(f"there is no {plot.name}")
        where = os.path.relpath(plot, Path(self.env.doc2path(self.env.docname)).parent)
        return [nodes.image(uri=where, alt=f"{kind}: {name}")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("benchmark-table", BenchmarkTable)
    app.add_directive("benchmark-plot", BenchmarkPlot)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
