"""Does the runs of a study of configs/ablation.py that are not on record yet, and makes the tables of the docs.

    python -m benchmarks.study run screen --place pbc=PBC_dataset_normal_DIB.zip --place split=split.csv \\
        --place weights=resnet18.safetensors
    python -m benchmarks.study run models-red --place chula=chula_rbc/manifest.csv \\
        --place 'models=runs/studies/models/{run}-{seed}/bundle'
    python -m benchmarks.study tables
    python -m benchmarks.study shifts screen 'shifts/{run}.json'

Each run is a process of its own, `launch.py` with a workdir below --work, and leaves one line in
docs/studies/STUDY.jsonl: what was set, the fingerprints of its data and first weights, on which machine, when, how long
(null where it went on from an earlier part), and its metrics. A line stands for good: a run is done again only if its
settings change. `tables` writes into docs/results.md, between the marks of each study; `shifts` prints what each switch
of a crossed study adds in the tables that benchmarks/shift.py made of the runs' bundles. What they hold stands in
benchmarks/study_tables.py.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import hashlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import study_tables
from configs.ablation import STUDIES, Changes, get_config, settings
from rcmnet_jax.config import ExperimentConfig
from rcmnet_jax.files import write_atomic
from rcmnet_jax.settings import change, config_hash, from_dict

ROOT = Path(__file__).parent.parent
METRICS = ("top1", "balanced_accuracy", "macro_f1", "auroc", "nll", "ece")
INTERVALS = ("top1", "balanced_accuracy")
ARMS = ("transfer", "direct", "scratch", "probe", "shortcut")
MACHINE = ("cpu", "cores", "device", "devices", "python", "jax", "flax", "commit")


def run(study: str, places: Mapping[str, str], work: Path, only: Sequence[str], seeds: Sequence[int]) -> None:
    """Does what is missing, seed by seed, so that early results already compare runs."""
    done = {(line["run"], line["seed"]) for line in study_tables.records(study)}
    for seed in seeds or range(STUDIES[study].seeds):
        for name in only or STUDIES[study].runs:
            if (name, seed) not in done:
                _one(study, name, seed, places, work)


def _one(study: str, name: str, seed: int, places: Mapping[str, str], work: Path) -> None:
    workdir = work / study / f"{study_tables.folder_of(name)}-{seed}"
    filled = _filled(settings(study, name), located(places, name, seed))
    if STUDIES[study].images:
        filled["source.splits"] = str(_part(Path(filled["source.splits"]), STUDIES[study].images, work))
    own = settings(study, name).get("seed", 0) + seed
    asked = [f"--config={ROOT}/configs/ablation.py:{study}/{name}", f"--workdir={workdir}", f"--config.seed={own}"]
    command = [sys.executable, str(ROOT / "launch.py"), *asked, *(f"--config.{k}={v}" for k, v in filled.items())]
    begun_before, start = workdir.exists(), time.perf_counter()
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{study}/{name}, seed {seed} ended with {ended.returncode}:\n{ended.stdout[-2000:]}")
    took = round(time.perf_counter() - start)
    around = json.loads((workdir / "environment.json").read_text())
    inputs = json.loads((workdir / "data" / "sets.json").read_text())
    config: ExperimentConfig = from_dict(get_config(f"{study}/{name}").to_dict())
    line = {
        "study": study,
        "run": name,
        "seed": seed,
        "settings": settings(study, name),
        "config_hash": config_hash(change(config, seed=own)),  # before places of data and weights are filled in
        "inputs": {which: facts["fingerprint"] for which, facts in inputs.items()},
        "seconds": None if begun_before else took,  # of an earlier part nobody knows
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": {key: around.get(key) for key in MACHINE},
        "results": _results(workdir),
        "differences": _differences(workdir),
    }
    study_tables.RECORDS.mkdir(exist_ok=True)
    with (study_tables.RECORDS / f"{study}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    shown = {arm: values.get(STUDIES[study].primary) for arm, values in line["results"].items()}
    print(f"{study}/{name}, seed {seed}: {shown}, {took} s", flush=True)


def located(places: Mapping[str, str], run: str, seed: int) -> dict[str, str]:
    """The places of one run: `{run}` and `{seed}` in them name it, as its workdir is named."""
    return {
        key: path.replace("{run}", study_tables.folder_of(run)).replace("{seed}", str(seed))
        for key, path in places.items()
    }


def _filled(changes: Changes, places: Mapping[str, str], where: str = "") -> dict[str, str]:
    """The settings that name a place, by their dotted key, as this user has them."""
    made: dict[str, str] = {}
    for key, value in changes.items():
        if isinstance(value, dict):
            made |= _filled(value, places, f"{where}{key}.")
        elif isinstance(value, str) and value.startswith("{"):
            if value[1:-1] not in places:
                raise SystemExit(f"{where}{key} is {value}: give --place {value[1:-1]}=PATH.")
            made[f"{where}{key}"] = places[value[1:-1]]
    return made


def _part(splits: Path, images: int, work: Path) -> Path:
    """A split file with so many of the training images: those whose path has the smallest SHA-256."""
    with splits.open(newline="") as file:
        rows = [(row["path"], row["split"]) for row in csv.DictReader(file)]
    train = sorted((row for row in rows if row[1] == "train"), key=lambda row: hashlib.sha256(row[0].encode()).digest())
    path = work / f"{splits.stem}-{images}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("path", "split"), *sorted(train[:images]), *(r for r in rows if r[1] != "train")])
    write_atomic(path, text.getvalue())  # other runs may read it
    return path


def _results(workdir: Path) -> dict[str, dict[str, Any]]:
    """Of pretraining, and of each arm."""
    found = {}
    for name in ("pretrain", *ARMS):
        path = workdir / name / "metrics.json"
        if path.exists():
            metrics = json.loads(path.read_text())
            intervals = {key: [metrics[key]["low"], metrics[key]["high"]] for key in INTERVALS}
            found[name] = {"n": metrics["n"], **{key: metrics[key]["value"] for key in METRICS}, "intervals": intervals}
    return found


def _differences(workdir: Path) -> dict[str, dict[str, list[float]]]:
    """Of each arm that the run's first arm is compared with: difference, low and high of that less this."""
    path = workdir / "comparison.json"
    pairs = json.loads(path.read_text())["pairs"] if path.exists() else []
    return {p["second"]: {k: [p[k][part] for part in ("difference", "low", "high")] for k in INTERVALS} for p in pairs}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = words.add_subparsers(dest="what", required=True)
    runs = what.add_parser("run", help="do the runs that are missing")
    runs.add_argument("study", choices=STUDIES)
    fills = "fills {NAME} in the settings; {run} and {seed} in PATH are those of the run"
    runs.add_argument("--place", action="append", default=[], metavar="NAME=PATH", help=fills)
    runs.add_argument("--work", type=Path, default=Path("runs/studies"), help="folder of the workdirs")
    runs.add_argument("--only", action="append", default=[], metavar="RUN")
    runs.add_argument("--seed", action="append", default=[], type=int)
    what.add_parser("tables", help="write the tables into docs/results.md")
    moved = what.add_parser("shifts", help="what each switch of a crossed study adds in other laboratories")
    moved.add_argument("study", choices=[name for name, study in STUDIES.items() if study.switches])
    moved.add_argument("pattern", metavar="PATH", help="tables of benchmarks.shift --output, with {run} for the run")
    chosen = words.parse_args()
    if chosen.what == "run":
        places = dict(place.split("=", 1) for place in chosen.place)
        run(chosen.study, places, chosen.work, chosen.only, chosen.seed)
    elif chosen.what == "shifts":
        print(study_tables.shifts(chosen.study, chosen.pattern))
    else:
        page = study_tables.PAGE
        page.write_text(study_tables.with_tables(page.read_text()))


if __name__ == "__main__":
    main()
