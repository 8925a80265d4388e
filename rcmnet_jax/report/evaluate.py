"""The command `evaluate`: from tables alone to metrics.json, figures, report.html and comparison.json."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rcmnet_jax.errors import UserError
from rcmnet_jax.evaluation.metrics import compute, to_json
from rcmnet_jax.evaluation.tables import Table, read_table
from rcmnet_jax.files import refuse_within_bundle, remove, write_atomic
from rcmnet_jax.report.figures import standalone
from rcmnet_jax.report.html import draw, render_with
from rcmnet_jax.report.inputs import ImageReader, ReportInputs


def evaluate_tables(
    paths: list[Path], output: Path, images: str | ImageReader | None = None, *, seed: int = 0
) -> dict[str, Any]:
    """Evaluates the first table, compares it with the others, and writes all to the folder `output`.

    Args:
      paths: predictions tables; the first is the one reported on.
      images: DATA that the paths of the table are relative to, or a function from path to (H, W, 3) uint8, or None.

    Returns:
      The first table's metrics, as in metrics.json; "comparison" is added where there are several tables.

    Raises:
      UserError: a table that cannot be read or joined, or an output that is no folder. Nothing is written then.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"--output={output}: is a file. Name a folder.")
    refuse_within_bundle(output / "metrics.json", "--output")
    tables = [read_table(path) for path in paths]
    names = _names(paths)
    facts = [{"table": path.name, "rows": len(table)} for path, table in zip(paths, tables, strict=True)]
    metrics = [compute(t, seed=seed, provenance=f) for t, f in zip(tables, facts, strict=True)]
    comparison = _compared(tables, names, seed)
    inputs = ReportInputs(
        table=tables[0],
        metrics=metrics[0],
        title=f"Evaluation of {names[0]}",
        arms=dict(zip(names, metrics, strict=True)),
        images=_reader(images, tables[0]),
        comparison=comparison,
        provenance={"Tables": facts},
    )
    figures = draw(inputs, metrics[0])
    page = render_with(inputs, metrics[0], figures)
    # What an earlier evaluation left there and this one has not would pass for its own.
    for name in ("comparison.json", *(f"figures/{name}.svg" for name in figures)):
        remove(output / name)
    for drawn in figures.values():
        if drawn is not None:
            write_atomic(output / "figures" / f"{drawn.name}.svg", standalone(drawn))
    write_atomic(output / "metrics.json", to_json(metrics[0]))
    if comparison is not None:
        write_atomic(output / "comparison.json", to_json(comparison))
    write_atomic(output / "report.html", page)
    return {**metrics[0], "comparison": comparison} if comparison is not None else metrics[0]


def _compared(tables: list[Table], names: list[str], seed: int) -> dict[str, Any] | None:
    if len(tables) < 2:
        return None
    from rcmnet_jax.evaluation.compare import compare

    return compare(dict(zip(names, tables, strict=True)), seed=seed)


def _names(paths: list[Path]) -> list[str]:
    """A name for each table: the file's, with as many folders before it as it takes to tell them apart."""
    if len({os.path.normpath(path) for path in paths}) < len(paths):
        raise UserError("the same table is given twice. Give each once.")
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.with_suffix("").parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _reader(images: str | ImageReader | None, table: Table) -> ImageReader | None:
    if images is None or callable(images):
        return images
    from rcmnet_jax.data.images import ImageError, decode
    from rcmnet_jax.data.sources import UnreadableError, open_source

    source = open_source(images, labelled=False)
    items = {item.path: item for item in source.items}
    if items and not items.keys() & set(table.path.tolist()):
        raise UserError(
            f"--images={images}: has none of the table's images; the table names '{table.path[0]}', the data "
            f"'{next(iter(items))}'. Give the data that the table's paths are relative to."
        )

    def read(path: str) -> NDArray[np.uint8] | None:
        try:
            return decode(source.read(items[path])) if path in items else None
        except (ImageError, UnreadableError):
            return None  # the report goes without this example

    return read
