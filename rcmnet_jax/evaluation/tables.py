"""The predictions table as a file: CSV with fixed columns, written whole or not at all, and checked when it is read."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rcmnet_jax.errors import UserError, suggestion
from rcmnet_jax.evaluation.table import COLUMNS, SPLITS, Floats, Ints, Table, Text, make_table, reorder
from rcmnet_jax.files import csv_text, write_atomic

__all__ = ["COLUMNS", "Table", "join", "make_table", "read_table", "reorder", "to_csv", "write_table"]

SUM_TOLERANCE = 1e-3  # other people's tables hold four decimals
ENCODING = "utf-8-sig"  # Excel starts a file with a byte-order mark


def to_csv(table: Table) -> str:
    """The file's text: equal tables give equal bytes. Numbers have 9 significant digits, which tell float32 apart."""
    head = [*COLUMNS, *(f"p_{name}" for name in table.classes)]
    columns = [_written(getattr(table, name)) for name in COLUMNS]
    columns += [_written(table.probabilities[:, k]) for k in range(len(table.classes))]
    return csv_text([head, *zip(*columns, strict=True)])


def write_table(table: Table, path: Path) -> None:
    """Writes the table aside, then renames it: a reader sees the old file or the new one, never a part."""
    write_atomic(path, to_csv(table))


def _written(values: Text | Ints | Floats) -> list[str]:
    if values.dtype.kind == "f":
        return [format(v, ".9g") for v in values.tolist()]
    if values.dtype.kind == "i":
        return ["" if v < 0 else str(v) for v in values.tolist()]
    return [str(v) for v in values.tolist()]


def read_table(path: Path) -> Table:
    """Reads a table and checks it all.

    Raises:
      UserError: no readable UTF-8 CSV, a column missing or twice, a field that is not what its column holds,
        probabilities outside [0, 1] or not summing to one, an unknown label, a path twice for one seed, no rows.
    """
    path = Path(path)
    try:
        with path.open(encoding=ENCODING, newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            classes = _classes(path, header)
            rows = [(reader.line_num, row) for row in reader if row]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Give a predictions table in CSV.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text. Save the table as a UTF-8 CSV.") from error
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV table ({error}). Save it as a UTF-8 CSV with commas.") from error
    if not rows:
        raise UserError(f"{path}: the table has no rows. Make it anew with `predict`.")
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(
                f"{path}, line {line}: {len(row)} fields, but the header names {len(header)}. Mend the line."
            )
    return _Reader(path, classes, header, rows).table()


def _classes(path: Path, header: list[str]) -> tuple[str, ...]:
    for name in header:
        if header.count(name) > 1:
            raise UserError(f"{path}, line 1: column '{name}' stands twice. Keep one.")
    classes = tuple(name[2:] for name in header if name.startswith("p_"))
    if missing := [f"'{name}'" for name in COLUMNS if name not in header]:
        missing += ["'p_CLASS' for each class"] * (len(classes) < 2)
        said = f"column {missing[0]} is" if len(missing) == 1 else f"columns {_listed(missing)} are"
        raise UserError(
            f"{path}, line 1: {said} missing. Add {'it' if len(missing) == 1 else 'them'}; "
            "only path and the probabilities need a value in every row."
        )
    if len(classes) < 2:
        raise UserError(f"{path}, line 1: {len(classes)} probability columns, at least 2 needed. Name them p_CLASS.")
    if "" in classes:
        raise UserError(f"{path}, line 1: column 'p_' names no class. Name it p_CLASS.")
    return classes


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


@dataclass
class _Reader:
    """Fields of one file, turned into a table; every complaint names file, line and field."""

    path: Path
    classes: tuple[str, ...]
    header: list[str]
    rows: list[tuple[int, list[str]]]

    def table(self) -> Table:
        p = np.stack([self.floats(f"p_{name}") for name in self.classes], 1)
        for row in np.flatnonzero(np.abs(p.sum(1) - 1) > SUM_TOLERANCE)[:1]:
            self.fail(row, "p_*", f"the probabilities sum to {p[row].sum():.6g}, not 1", "Give all classes' softmax")
        confidence = self.floats("confidence", default=p.max(1))
        prediction = self.named("prediction", [self.classes[k] for k in p.argmax(1)])
        index = {name: k for k, name in enumerate(self.classes)}
        chosen = p[np.arange(len(p)), [index[name] for name in prediction.tolist()]]
        for row in np.flatnonzero(chosen < p.max(1) - 1e-6)[:1]:
            best = self.classes[p[row].argmax()]
            self.fail(row, "prediction", f"'{prediction[row]}', but p_{best} is higher", "Check the columns' order")
        for row in np.flatnonzero(np.abs(confidence - chosen) > SUM_TOLERANCE)[:1]:
            said = f"{confidence[row]:.6g}, but p_{prediction[row]} is {chosen[row]:.6g}"
            self.fail(row, "confidence", said, "Give the prediction's probability, or leave the column out")
        table = Table(
            path=self.text("path", needed=True),
            sha256=self.text("sha256"),
            group=self.text("group"),
            split=self.text("split", SPLITS),
            seed=self.ints("seed"),
            fold=self.ints("fold"),
            label=self.named("label", None),
            prediction=prediction,
            confidence=confidence,
            abstain=self.ints("abstain", most=1),
            ood=self.ints("ood", most=1),
            probabilities=p,
            classes=self.classes,
        )
        if (twice := _twice(table)) is not None:
            self.fail(twice, "path", f"'{table.path[twice]}' stands twice{_of_seed(table, twice)}", "Keep one row each")
        return table

    def fail(self, row: int, name: str, wrong: str, way_out: str) -> None:
        stop = "" if wrong.endswith((".", "?")) else "."
        raise UserError(f"{self.path}, line {self.rows[row][0]}, field '{name}': {wrong}{stop} {way_out}.")

    def fields(self, name: str) -> list[str]:
        at = self.header.index(name)
        return [row[at] for _, row in self.rows]

    def text(self, name: str, allowed: tuple[str, ...] = (), *, needed: bool = False) -> Text:
        fields = self.fields(name)
        for row, value in enumerate(fields):
            if needed and not value:
                self.fail(row, name, "empty", "Every row needs it")
            if allowed and value not in allowed:
                self.fail(row, name, f"'{value}' is not one of {', '.join(filter(None, allowed))}", "Or leave it empty")
        return np.array(fields, dtype=np.str_)

    def named(self, name: str, default: list[str] | None) -> Text:
        """Class names; an empty field takes the default, or stays empty."""
        fields = self.fields(name)
        for row, value in enumerate(fields):
            if not value:
                fields[row] = default[row] if default else ""
            elif value not in self.classes:
                self.fail(row, name, f"'{value}' is no class of this table{suggestion(value, self.classes)}", "Mend it")
        return np.array(fields, dtype=np.str_)

    def floats(self, name: str, default: Floats | None = None) -> Floats:
        values = np.empty(len(self.rows))
        for row, field in enumerate(self.fields(name)):
            try:
                values[row] = float(field) if field or default is None else default[row]
            except ValueError:
                values[row] = math.nan
            if not -1e-6 <= values[row] <= 1 + 1e-6:
                self.fail(row, name, f"'{field}' is no number between 0 and 1", "Give a probability")
        return values.clip(0, 1)

    def ints(self, name: str, most: int = 2**31) -> Ints:
        values = np.full(len(self.rows), -1, np.int64)
        for row, field in enumerate(self.fields(name)):
            if field:
                values[row] = int(field) if field.isascii() and field.isdigit() and len(field) < 12 else -1
                if not 0 <= values[row] <= most:
                    kind = "0 or 1" if most == 1 else "a whole number of at least 0"
                    self.fail(row, name, f"'{field}' is not {kind}", "Or leave it empty")
        return values


def _twice(table: Table) -> int | None:
    """Row of the first path that another row of the same seed had before it."""
    seen: set[tuple[str, int]] = set()
    for row, key in enumerate(zip(table.path.tolist(), table.seed.tolist(), strict=True)):
        if key in seen:
            return row
        seen.add(key)
    return None


def _of_seed(table: Table, row: int) -> str:
    return f" for seed {table.seed[row]}" if table.seed[row] >= 0 else ""


def join(tables: Sequence[Table]) -> Table:
    """One table of all rows, in the given order, columns in the first one's class order.

    Raises:
      UserError: none given, other classes, or a path twice for one seed.
    """
    if not tables:
        raise UserError("no predictions table to join. Give at least one.")
    classes = tables[0].classes
    for table in tables:
        if set(table.classes) != set(classes):
            raise UserError(
                f"tables differ in their classes: {', '.join(classes)} against {', '.join(table.classes)}. "
                "Only predictions over the same classes can be joined."
            )
    aligned = [reorder(table, classes) for table in tables]
    columns = {name: np.concatenate([getattr(t, name) for t in aligned]) for name in (*COLUMNS, "probabilities")}
    joined = Table(classes=classes, **columns)
    if (twice := _twice(joined)) is not None:
        raise UserError(f"'{joined.path[twice]}' stands in two tables{_of_seed(joined, twice)}. Join each leaf once.")
    return joined
