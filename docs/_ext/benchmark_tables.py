"""The directive `benchmark-table`: a summary of a file of benchmarks/results, read when the documentation is built.

    ```{benchmark-table} amd-epyc-4threads-2026-11-23-layers.json
    :table: classes
    :columns: class, pass, cells, geomean
    ```

`table` is `classes` (ratios by class of layer) or `lists` (all layers of a network together); `columns` picks from
the columns that `python -m benchmarks report` prints, all of them by default.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import OptionSpec

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import report  # noqa: E402 - the checkout's package, which is not installed
from benchmarks.results import FOLDER, Results  # noqa: E402

TABLES = {"classes": report.class_summary, "lists": report.network_summary}


class BenchmarkTable(SphinxDirective):
    """Draw a table of benchmarks.report as a table of the page."""

    required_arguments = 1
    option_spec: ClassVar[OptionSpec] = {
        "table": lambda name: directives.choice(name, TABLES),
        "columns": directives.unchanged,
    }

    def run(self) -> list[nodes.Node]:
        """Read the file and make the table."""
        path = FOLDER / self.arguments[0]
        self.env.note_dependency(str(path))
        drawn = TABLES[self.options.get("table", "classes")](Results.load(path))
        columns = {str(column.header): column for column in drawn.columns}
        names = [name.strip() for name in self.options.get("columns", ",".join(columns)).split(",")]
        if unknown := [name for name in names if name not in columns]:
            raise self.error(f"no column {', '.join(unknown)}: there are {', '.join(columns)}")
        rows = zip(*([str(cell) for cell in columns[name].cells] for name in names), strict=True)

        table = nodes.table(classes=["benchmarks"])
        group = nodes.tgroup(cols=len(names))
        group += [nodes.colspec(colwidth=1) for _ in names]
        head, body = nodes.thead(), nodes.tbody()
        head += row_of(names, names, columns)
        body += [row_of(row, names, columns) for row in rows]
        group += [head, body]
        table += group
        return [table]


def row_of(values, names, columns) -> nodes.row:
    """One row, each entry on the side that its column has in the terminal."""
    row = nodes.row()
    for value, name in zip(values, names, strict=True):
        entry = nodes.entry(classes=[f"text-{columns[name].justify}"])
        entry += nodes.paragraph("", value)
        row += entry
    return row


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("benchmark-table", BenchmarkTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
