"""Tables, plots and files of the newest results in benchmarks/results, read when the documentation is built.

    ```{benchmark-table} layers
    :table: classes
    :columns: class, pass, geomean
    ```

    ```{benchmark-plot} floor roofline
    ```

    ```{benchmark-files} layers
    ```

The argument is a command of `python -m benchmarks`; its newest result file is read, or that of `all` where it includes
the command. `table` is `classes` (ratios by class of layer), `lists` (sums over a network) or `steps` (training steps);
`columns` selects columns of `python -m benchmarks report`, by default all.

    ```{saved-bytes}
    ```

counts the bytes that autograd keeps for the networks of benchmarks/networks.py, before and after `convx.torch.convert`,
when the pages are built.
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
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import OptionSpec

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import data, report, training  # noqa: E402 - the checkout's package, which is not installed
from benchmarks.cases import training_cases  # noqa: E402
from benchmarks.results import FOLDER, Cell, Results  # noqa: E402

TABLES: dict[str, Callable[[Results], list[object]]] = {
    "classes": lambda results: [report.class_summary(results)],
    "lists": lambda results: [report.network_summary(results)],
    "steps": lambda results: training.tables(results)[:1],
}
IN_ALL = ("layers", "pool", "relu", "fused", "overhead")


def newest(kind: str) -> Path | None:
    """Return the file of the latest run of this command or of `all`, by the date in its name."""
    kinds = [kind, "all"] if kind in IN_ALL else [kind]
    paths = [path for each in kinds for path in FOLDER.glob(f"*-{each}.json")]
    dated = [(date[0], path) for path in paths if (date := re.search(r"\d{4}-\d\d-\d\d", path.name))]
    return max(dated, default=(None, None))[1]


class BenchmarkTable(SphinxDirective):
    """Draw tables of `python -m benchmarks report` as tables of the page."""

    required_arguments = 1
    option_spec: ClassVar[OptionSpec] = {
        "table": lambda name: directives.choice(name, TABLES),
        "columns": directives.unchanged,
    }

    def run(self) -> list[nodes.Node]:
        """Read the file and make the tables; a note where the command has no results."""
        kind = self.arguments[0]
        path = newest(kind)
        if path is None:
            return [nodes.paragraph("", f"Not measured yet: python -m benchmarks {kind} makes this table.")]
        self.env.note_dependency(str(path))
        results = Results.load(path)
        parts = TABLES[self.options.get("table", "classes")](results)
        names = [name.strip() for name in self.options.get("columns", "").split(",") if name.strip()]
        return [self.described(results), *(drawn(part, names) for part in parts if isinstance(part, Table))]

    def described(self, results: Results) -> nodes.paragraph:
        """Describe the run: date, processor, threads, load, command."""
        about, machine = results.about, results.about["machine"]
        text = (
            f"{about['date'][:10]}, {machine['cpu']}, {about['settings']['threads']} threads, load average "
            f"{machine['load_average']:.1f} before, {machine['load_average_after']:.1f} after: "
        )
        # Without the options for output files.
        command = re.sub(r" --output \S+", "", about["command"])
        return nodes.paragraph("", text, nodes.literal("", command), classes=["benchmarks"])


def drawn(table: Table, names: list[str]) -> nodes.table:
    """Convert a table for the terminal to one of the page: the columns of these names, by default all."""
    # Two columns may have one name (times and bytes of one library); the first one counts.
    headers = [plain(column.header) for column in table.columns]
    if unknown := [name for name in names if name not in headers]:
        raise ValueError(f"no column {', '.join(unknown)}: there are {', '.join(headers)}")
    places = [headers.index(name) for name in names] or range(len(headers))
    names = [headers[place] for place in places]
    sides = [f"text-{table.columns[place].justify}" for place in places]
    rows = zip(*(map(plain, table.columns[place].cells) for place in places), strict=True)

    made = nodes.table(classes=["benchmarks"])
    group = nodes.tgroup(cols=len(names))
    head, body = nodes.thead("", row_of(names, sides)), nodes.tbody()
    body += [row_of(row, sides) for row in rows]
    group += [*(nodes.colspec(colwidth=1) for _ in names), head, body]
    made += group
    return made


def plain(value: object) -> str:
    """Return a cell's text without colours, and with a short name for the fused operation."""
    text = value.plain if isinstance(value, Text) else str(value)
    return text.replace("conv2d_relu_max_pool2d.", "fused.")


def row_of(values, sides) -> nodes.row:
    """Make one row, each entry aligned as in the terminal."""
    row = nodes.row()
    for value, side in zip(values, sides, strict=True):
        row += nodes.entry("", nodes.paragraph("", value), classes=[side])
    return row


class BenchmarkPlot(SphinxDirective):
    """Show a plot of the newest run of a command."""

    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        """Make the image; nothing where the command has no results."""
        kind, name = self.arguments
        path = newest(kind)
        if path is None:
            return []
        plot = path.with_name(f"{path.stem}-{name}.png")
        if not plot.exists():
            raise self.error(f"there is no {plot.name}")
        # An image with a width becomes a link to its full size.
        return [nodes.image(uri=beside(self, plot), alt=f"{kind}: {name}", width="100%")]


class BenchmarkFiles(SphinxDirective):
    """Link the files of the newest run of a command: tables and plots of every layer, and the JSON."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Make a line of links; nothing where the command has no results."""
        path = newest(self.arguments[0])
        if path is None:
            return []
        line = nodes.paragraph("", "Every layer: ", classes=["benchmarks"])
        words = {".txt": "tables", ".json": "figures, JSON"}
        for index, file in enumerate([path.with_suffix(".txt"), *sorted(path.parent.glob(f"{path.stem}-*.png")), path]):
            kind = words.get(file.suffix, file.stem.removeprefix(f"{path.stem}-"))
            link = addnodes.download_reference("", "", reftarget=beside(self, file), refdoc=self.env.docname)
            link += nodes.inline("", kind)
            line += [nodes.Text(", " if index else ""), link]
        return [line]


class SavedBytes(SphinxDirective):
    """Count the bytes that autograd keeps, layer by layer."""

    def run(self) -> list[nodes.Node]:
        """Run every network forward once, in PyTorch and converted; one table for all, and one for each."""
        import convx.torch
        from benchmarks.runners.training import Step

        cells = []
        for case in training_cases():
            arrays = data.arrays(case)
            converted = Step(case, arrays, change=lambda model: convx.torch.convert(model, verbose=False))
            cells.append(Cell(case, {"torch": Step(case, arrays).saved(), "convx": converted.saved()}))
        total = report.table("", ["network", "torch", "convx", "ratio"])
        for cell in cells:
            amounts = (training.mebibytes(training.saved(cell, name)) for name in ("torch", "convx"))
            total.add_row(cell.case.problem.describe(), *amounts, report.times(training.saved_ratio(cell)))
        made: list[nodes.Node] = [drawn(total, [])]
        for cell in cells:
            _, units = training.unit_table(cell)
            made += [nodes.paragraph("", f"{cell.case.problem.describe()}:", classes=["benchmarks"]), drawn(units, [])]
        return made


def beside(directive: SphinxDirective, file: Path) -> str:
    """Return the path of a file relative to the page of the directive."""
    return os.path.relpath(file, Path(directive.env.doc2path(directive.env.docname)).parent)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("benchmark-table", BenchmarkTable)
    app.add_directive("benchmark-plot", BenchmarkPlot)
    app.add_directive("benchmark-files", BenchmarkFiles)
    app.add_directive("saved-bytes", SavedBytes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
