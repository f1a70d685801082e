"""Tables, plots and files of the newest results in benchmarks/results, read when the documentation is built.

    ```{benchmark-table} layers
    :table: classes
    :columns: class, pass, geomean
    ```

    ```{benchmark-plot} floor roofline
    ```

    ```{benchmark-files} layers
    ```

The first word is the command of `python -m benchmarks`, whose newest file is taken; a run of `all` counts as one of
those that it has. `table` is `classes` (ratios by class of layer), `lists` (all layers of a network together) or
`steps` (training steps); `columns` picks from those that `python -m benchmarks report` prints, all by default.

    ```{saved-bytes}
    ```

counts what autograd keeps of the networks of benchmarks/networks.py, before and after `convx.torch.convert`: bytes and
not times, so that they need no run of the benchmarks.
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
        """Read the file and make the tables; say so where the command has not been run."""
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
        """Say when, on what and with how many threads."""
        about, machine = results.about, results.about["machine"]
        text = (
            f"{about['date'][:10]}, {machine['cpu']}, {about['settings']['threads']} threads, load average "
            f"{machine['load_average']:.1f} before, {machine['load_average_after']:.1f} after: "
        )
        # Without its options on where to write.
        command = re.sub(r" --output \S+", "", about["command"])
        return nodes.paragraph("", text, nodes.literal("", command), classes=["benchmarks"])


def drawn(table: Table, names: list[str]) -> nodes.table:
    """Turn a table for the terminal into one of the page: the columns of these names, all where there are none."""
    # Two columns may have one name, as times and bytes of the same library have: the first one is meant.
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
    """Return a cell's text without its colours, its longest word as the pages have it: tables that fit are read."""
    text = value.plain if isinstance(value, Text) else str(value)
    return text.replace("conv2d_relu_max_pool2d.", "fused.")


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
        # With a width it becomes a link to itself in full size.
        return [nodes.image(uri=beside(self, plot), alt=f"{kind}: {name}", width="100%")]


class BenchmarkFiles(SphinxDirective):
    """Offer all that the newest run of a command has written: every layer in tables and plots, and the figures."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Make a line of links; nothing where the command has not been run."""
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
    """Count what autograd keeps, layer by layer."""

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
    """Return the path of a file as the page of the directive writes it."""
    return os.path.relpath(file, Path(directive.env.doc2path(directive.env.docname)).parent)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("benchmark-table", BenchmarkTable)
    app.add_directive("benchmark-plot", BenchmarkPlot)
    app.add_directive("benchmark-files", BenchmarkFiles)
    app.add_directive("saved-bytes", SavedBytes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
