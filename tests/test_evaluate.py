"""`evaluate` from tables to files: the contract's files and no others, and names that stay text in all of them."""

import dataclasses
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from rcmnet_jax.__main__ import parser
from rcmnet_jax.errors import UserError
from rcmnet_jax.evaluation.metrics import compute, summary_rows
from rcmnet_jax.evaluation.tables import read_table, write_table
from rcmnet_jax.report import evaluate_tables
from rcmnet_jax.report.figures import legible
from rcmnet_jax.report.plots import short
from tests.test_report import HOSTILE, Page, example, picture


def test_evaluating_tables_writes_the_contracts_files(tmp_path):
    write_table(example(), tmp_path / "a.csv")
    write_table(example(signal=1.0), tmp_path / "b.csv")
    found = evaluate_tables([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "out", picture)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["top1"] == found["top1"]
    assert metrics == json.loads(json.dumps(compute(read_table(tmp_path / "a.csv"), provenance=metrics["provenance"])))
    comparison = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert comparison["sentences"][0] in " ".join(Page((tmp_path / "out" / "report.html").read_text()).words)
    drawn = sorted((tmp_path / "out" / "figures").glob("*.svg"))
    assert len(drawn) >= 5
    for file in drawn:
        assert ElementTree.parse(file).getroot().tag.endswith("svg")
        assert "var(--" not in file.read_text()


def test_evaluating_one_table_writes_no_comparison(tmp_path):
    write_table(example(), tmp_path / "a.csv")
    write_table(example(signal=1.0), tmp_path / "b.csv")
    evaluate_tables([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "out")
    evaluate_tables([tmp_path / "a.csv"], tmp_path / "out")  # of the earlier one nothing stays
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"metrics.json", "report.html", "figures"}


def test_evaluating_refuses_before_it_writes(tmp_path):
    write_table(example(), tmp_path / "a.csv")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        evaluate_tables([tmp_path / "a.csv"], tmp_path / "file")
    with pytest.raises(UserError, match="given twice"):
        evaluate_tables([tmp_path / "a.csv", tmp_path / "a.csv"], tmp_path / "out")
    write_table(example(classes=("x", "y")), tmp_path / "c.csv")
    with pytest.raises(UserError, match="same classes"):
        evaluate_tables([tmp_path / "a.csv", tmp_path / "c.csv"], tmp_path / "out")
    (tmp_path / "images/blast").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "images/blast/elsewhere.png")
    with pytest.raises(UserError, match=r"has none of the table's images; .* the data 'blast/elsewhere\.png'"):
        evaluate_tables([tmp_path / "a.csv"], tmp_path / "out", str(tmp_path / "images"))
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_main_values_with_their_intervals(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for name, signal in (("a", 2.0), ("b", 0.5)):
        write_table(example(signal=signal), tmp_path / f"{name}.csv")
    tables = [str(tmp_path / f"{name}.csv") for name in "ab"]
    arguments = parser().parse_args(["evaluate", *tables, "--output", str(tmp_path / "out")])
    arguments.run(arguments)
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    for row in summary_rows(compute(read_table(tmp_path / "a.csv"))):
        assert " ".join(row).split() in rows
    comparison = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert comparison["sentences"][0] in printed
    assert rows[-1] == ["Report:", str(tmp_path / "out" / "report.html")]


def said(figure):
    """What a figure's SVG says: its texts, and the words for those who cannot see it."""
    root = ElementTree.fromstring(figure)
    return ["".join(e.itertext()) for e in root.iter() if e.tag.endswith("text")], root.attrib["aria-label"]


@pytest.mark.parametrize("classes", [HOSTILE[::2], HOSTILE[1::2]])
def test_names_are_the_same_text_in_every_figure_and_its_file(tmp_path, classes):
    table = example(300, classes)
    table = dataclasses.replace(table, group=np.array([HOSTILE[i % len(HOSTILE)] for i in range(300)]))
    write_table(table, tmp_path / "var(--x).csv")
    write_table(table, tmp_path / "b.csv")
    evaluate_tables([tmp_path / "var(--x).csv", tmp_path / "b.csv"], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert Page(page).open == []
    assert "\x08" not in page
    inline = [said(svg) for svg in re.findall('<svg class="plot".*?</svg>', page, re.DOTALL)]
    files = {file.stem: said(file.read_bytes()) for file in (tmp_path / "out" / "figures").glob("*.svg")}
    assert sorted(inline) == sorted(files.values())
    texts, label = files["roc_pr"]
    for name in classes:
        assert f"{legible(name)} 0." in label
        assert any(text.startswith(f"{short(name)}  0.") for text in texts)
    assert {short(name, 10) for name in HOSTILE} <= set(files["per_group"][0])
    assert "var(--x)" in files["forest_balanced_accuracy"][0]
