"""The tables of a study, from the lines that its runs left: see benchmarks/study.py, which makes both.

A table holds means and deviations over the seeds, the first seed's interval over images or groups, differences from the
study's first run paired by seed with a 95% t interval, and how far the run's first arm is ahead of its others (the
first seed's, with the interval of its comparison.json). That of a crossed study holds what each switch adds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from configs.ablation import STUDIES, Study, crossed, settings

ROOT = Path(__file__).parent.parent
RECORDS, PAGE = ROOT / "docs" / "studies", ROOT / "docs" / "results.md"


def records(study: str) -> list[dict[str, Any]]:
    """The lines on record whose settings are those of today."""
    path = RECORDS / f"{study}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {name: json.loads(json.dumps(settings(study, name))) for name in STUDIES[study].runs}
    return [line for line in lines if known.get(line["run"]) == line["settings"]]


def folder_of(run: str) -> str:
    """A run's name as a folder's."""
    return run.replace(" ", "_")


def table(study: str) -> str:
    """The Markdown of a study: for each run and arm the metrics over the seeds, and the paired difference.

    Of a crossed study: what each switch adds.
    """
    lines, found = sorted(records(study), key=lambda line: line["seed"]), STUDIES[study]
    if not lines:
        return ""
    if found.switches:
        return _switches(found, lines)
    values: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for line in lines:
        for arm, metrics in line["results"].items():
            values.setdefault((line["run"], arm), {})[line["seed"]] = metrics
    leading = {line["run"]: line for line in reversed(lines)}  # of each run the first seed's
    shown = {"top1": "top-1", "balanced_accuracy": "balanced accuracy", "nll": "NLL"}
    first, name = next(iter(found.runs)), shown[found.primary]
    head = ["run", *shown.values(), f"{name}, one seed's interval", f"{name}, against {first}",
            "the run's first arm less this one", "seeds", "minutes"]  # fmt: skip
    body = []
    for (run, arm), seeds in values.items():
        cells = [_spread([one[key] for one in seeds.values()], key != "nll") for key in shown]
        base = values.get((first, arm), {})
        both = [seeds[s][found.primary] - base[s][found.primary] for s in sorted(seeds.keys() & base.keys())]
        minutes = _minutes(line for line in lines if line["run"] == run)
        label = run if arm == "pretrain" else f"{run}, {arm}"
        interval = _points("{:.1f}-{:.1f}", leading[run]["results"].get(arm, {}).get("intervals"), found.primary)
        ahead = _points("{:+.1f} ({:+.1f} to {:+.1f})", leading[run].get("differences", {}).get(arm), found.primary)
        body.append([label, *cells, interval, "" if run == first else _difference(both), ahead,
                     str(len(seeds)), minutes])  # fmt: skip
    filled = [i for i in range(len(head)) if any(row[i] for row in body)]
    rows = _rows([row[i] for i in filled] for row in (head, *body))
    return "\n".join([found.question, "", *rows, "", _measured(lines)])


def _rows(cells: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, the head first."""
    head, *body = cells
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]


def _switches(study: Study, lines: Sequence[dict[str, Any]]) -> str:
    runs = [line["run"] for line in lines]
    shown = (("top-1, points", "top1", 100, 2), ("balanced accuracy, points", "balanced_accuracy", 100, 2),
             ("NLL", "nll", 1, 3))  # fmt: skip
    columns = [
        (title, scale * np.array([line["results"]["pretrain"][key] for line in lines]), digits)
        for title, key, scale, digits in shown
    ]
    rows = _effects_table(study, runs, columns)
    if rows is None:
        few = f"So far {len(lines)} of {len(study.runs)} runs, too few to tell the switches apart."
        return f"{study.question}\n\n{few}"
    return "\n".join(
        [study.question, "", *rows, "", f"{len(lines)} runs, {_minutes(lines)} minutes each. {_measured(lines)}"]
    )


def _minutes(lines: Iterable[Mapping[str, Any]]) -> str:
    """The mean of the runs that were done in one go, '-' without any."""
    seconds = [line["seconds"] for line in lines if line["seconds"] is not None]
    return f"{np.mean(seconds) / 60:.0f}" if seconds else "-"


def _effects_table(
    study: Study, runs: Sequence[str], columns: Sequence[tuple[str, NDArray[np.float64], int]]
) -> list[str] | None:
    """The lines of a table of what each switch of a crossed study adds; None where there are too few runs.

    `columns` are titles, the values of the runs, and the digits to show.
    """
    rows = dict(zip(study.runs, crossed(), strict=True))
    on = np.array([rows[run] for run in runs])
    cells = []
    for _, values, digits in columns:
        found = effects(on, values)
        if found is None:
            return None
        each = [f"{e:+.{digits}f} ({e - h:+.{digits}f} to {e + h:+.{digits}f})" for e, h in zip(*found, strict=True)]
        cells.append([f"{values.mean():.{digits}f}", *each])
    head = ["switch", *(title for title, _, _ in columns)]
    return _rows((head, *zip(("mean of all runs", *study.switches), *cells, strict=True)))


def shifts(study: str, pattern: str) -> str:
    """The Markdown of what each switch of a crossed study adds in other laboratories.

    Args:
      study: a crossed one.
      pattern: where `benchmarks.shift --output` wrote the table of each run's bundle, with {run} for the run.

    Raises:
      SystemExit: too few tables, or tables of different shifts or commits.
    """
    found = STUDIES[study]
    if "{run}" not in pattern:
        raise SystemExit(f"{pattern}: holds no {{run}}, which each run's name is put for.")
    places = {run: Path(pattern.replace("{run}", folder_of(run))) for run in found.runs}
    tables = {run: json.loads(path.read_text()) for run, path in places.items() if path.exists()}
    sets = {run: ([(row["shift"], row["strength"]) for row in one["rows"]], one["environment"]["commit"])
            for run, one in tables.items()}  # fmt: skip
    for run, one in sets.items():
        if one != next(iter(sets.values())):
            raise SystemExit(f"{places[run]}: other shifts, or another commit, than in {places[next(iter(sets))]}.")
    columns, every = [], [one["rows"] for one in tables.values()]
    for arm in every[0][0]["arms"] if every else ():
        if not all(arm in row["arms"] for rows in every for row in rows):
            continue
        values = 100 * np.array([[row["arms"][arm]["value"] for row in rows] for rows in every])
        columns.append((f"{arm}, no change", values[:, 0], 1))
        columns.append((f"{arm}, mean of the shifts", values[:, 1:].mean(1), 1))
    rows = _effects_table(found, list(tables), columns) if columns else None
    if rows is None:
        raise SystemExit(f"{pattern}: {len(tables)} tables of {study}'s runs, too few to tell the switches apart.")
    return "\n".join([*rows, "", f"Balanced accuracy in points, {len(tables)} runs."])


def effects(on: NDArray[np.bool_], values: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """What each switch adds to a value, by least squares, and half the width of its 95% t interval.

    With all rows of a crossed design an effect is the mean of the runs with the switch less the mean of those without.

    Args:
      on: (runs, switches).
      values: (runs,).

    Returns:
      Two arrays (switches,), in the values' unit; None where there are too few runs.
    """
    design = np.column_stack([np.ones(len(on)), on])
    left = len(on) - design.shape[1]
    if left < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    found = np.linalg.lstsq(design, values)[0]
    variance = np.sum((values - design @ found) ** 2) / left
    errors = np.sqrt(variance * np.diag(np.linalg.inv(design.T @ design)))
    return found[1:], stats.t.ppf(0.975, left) * errors[1:]


def _points(form: str, found: Mapping[str, Sequence[float | None]] | None, key: str) -> str:
    """Shares as points in `form`; empty where a line has none, or one image or group gave no interval."""
    shares = [100 * share for share in (found or {}).get(key, ()) if share is not None]
    return form.format(*shares) if len(shares) == form.count("{") else ""


def _spread(values: Sequence[float], share: bool) -> str:
    scale, digits, unit = (100, 2, "%") if share else (1, 3, "")
    middle, spread = np.mean(values) * scale, np.std(values, ddof=1) * scale if len(values) > 1 else float("nan")
    return f"{middle:.{digits}f}{unit} ± {spread:.{digits}f}" if len(values) > 1 else f"{middle:.{digits}f}{unit}"


def _difference(values: Sequence[float]) -> str:
    """In points: mean and 95% t interval."""
    if len(values) < 2:
        return f"{100 * values[0]:+.2f}" if values else "-"
    middle, half = np.mean(values), stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{100 * middle:+.2f} ({100 * (middle - half):+.2f} to {100 * (middle + half):+.2f})"


def _measured(lines: Sequence[dict[str, Any]]) -> str:
    dates, machines = sorted({line["date"] for line in lines}), [line["machine"] for line in lines]
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"*{when}, {'; '.join(dict.fromkeys(map(_machine, machines)))}.*"


def _machine(one: Mapping[str, Any]) -> str:
    cores = f"{one['cores']} core{'' if one['cores'] == 1 else 's'} of {one['cpu']}"
    where = cores if one["device"] == "cpu" else f"{one['devices']} x {one['device']}"
    return f"{where}, Python {one['python']}, jax {one['jax']}, flax {one['flax']}"


def with_tables(page: str) -> str:
    """The page with the table of each study between its marks; a study without marks is appended."""
    for study in STUDIES:
        if made := table(study):
            marks = f"<!-- study {study} -->\n", f"<!-- end of {study} -->\n"
            before, mark, rest = page.partition(marks[0])
            after = rest.partition(marks[1])[2] if mark else ""
            title = "" if mark else f"\n## Study: {study}\n\n"
            page = f"{before}{title}{marks[0]}{made}\n{marks[1]}{after}"
    return page
