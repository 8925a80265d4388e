"""The predictions table: same bytes for the same table, and a sentence for every way a file can be wrong."""

import dataclasses

import numpy as np
import pytest

from rcmnet_jax.errors import UserError
from rcmnet_jax.evaluation.tables import COLUMNS, join, make_table, read_table, to_csv, write_table

CLASSES = ("blast", "lympho,cyte", 'mo"no')


def example(n=6, seed=0, **fields):
    rng = np.random.default_rng(n)
    p = rng.dirichlet(np.ones(3), n).astype(np.float32).astype(np.float64)
    p /= p.sum(1, keepdims=True)
    given = {
        "label": [CLASSES[i % 3] for i in range(n)],
        "group": ["a", "b"] * (n // 2),
        "split": "oof",
        "seed": seed,
        "fold": 1,
    }
    return make_table([f"é/{i}.png" for i in range(n)], p, CLASSES, **(given | fields))


def same(a, b):
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray) and x.dtype.kind == "f":
            np.testing.assert_allclose(x, y, rtol=1e-8)
        else:
            np.testing.assert_array_equal(x, y)


def test_a_written_table_reads_back_and_writes_the_same_bytes(tmp_path):
    table = example(abstain=np.array([0, 1, 0, 0, 1, 0]), sha256=["ab" * 32] * 6)
    write_table(table, tmp_path / "new" / "t.csv")
    back = read_table(tmp_path / "new" / "t.csv")
    same(table, back)
    assert to_csv(back).encode() == (tmp_path / "new" / "t.csv").read_bytes()
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["t.csv"]


def test_the_header_is_the_contract():
    assert to_csv(example()).splitlines()[0] == (
        'path,sha256,group,split,seed,fold,label,prediction,confidence,abstain,ood,p_blast,"p_lympho,cyte","p_mo""no"'
    )


def test_nine_digits_tell_float32_values_apart(tmp_path):
    low = np.nextafter(np.float32(0.3), np.float32(1))
    p = np.array([[0.3, 0.7], [low, 1 - low]], np.float32).astype(np.float64)
    write_table(make_table(["a", "b"], p, ("x", "y")), tmp_path / "t.csv")
    np.testing.assert_array_equal(read_table(tmp_path / "t.csv").probabilities.astype(np.float32), p.astype(np.float32))


def test_unknown_fields_are_empty_and_read_back_as_unknown(tmp_path):
    write_table(make_table(["a"], np.array([[0.25, 0.75]]), ("x", "y")), tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text().splitlines()[1] == "a,,,,,,,y,0.75,,,0.25,0.75"
    back = read_table(tmp_path / "t.csv")
    assert (back.seed[0], back.fold[0], back.abstain[0], back.ood[0], back.truth()[0]) == (-1, -1, -1, -1, -1)


def test_a_byte_order_mark_and_crlf_are_read(tmp_path):
    text = to_csv(example()).replace("\n", "\r\n")
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    same(read_table(tmp_path / "t.csv"), example())


HEADER = [*COLUMNS, "p_x", "p_y"]
GOOD = {"path": "a.png", "label": "x", "prediction": "x", "confidence": "0.9", "p_x": "0.9", "p_y": "0.1"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"p_x": "0.8"}, "line 2, field 'p_*': the probabilities sum to 0.9"),
        ({"p_x": "nan"}, "line 2, field 'p_x'"),
        ({"p_x": "inf"}, "line 2, field 'p_x'"),
        ({"p_x": "-0.1", "p_y": "1.1"}, "line 2, field 'p_x'"),
        ({"p_x": ""}, "field 'p_x'"),
        ({"label": "X"}, "field 'label': 'X' is no class of this table; known: x, y"),
        ({"label": "x "}, "field 'label': 'x '"),
        ({"prediction": "z"}, "field 'prediction'"),
        ({"prediction": "y"}, "field 'prediction': 'y', but p_x is higher"),
        ({"confidence": "2"}, "field 'confidence'"),
        ({"confidence": "0.6"}, "field 'confidence': 0.6, but p_x is 0.9"),
        ({"path": ""}, "field 'path': empty"),
        ({"split": "tset"}, "field 'split': 'tset'"),
        ({"seed": "-1"}, "field 'seed'"),
        ({"fold": "1.5"}, "field 'fold'"),
        ({"abstain": "2"}, "field 'abstain'"),
    ],
)
def test_a_bad_field_is_named_with_file_and_line(tmp_path, change, words):
    row = GOOD | change
    (tmp_path / "t.csv").write_text(",".join(HEADER) + "\n" + ",".join(row.get(name, "") for name in HEADER) + "\n")
    with pytest.raises(UserError) as caught:
        read_table(tmp_path / "t.csv")
    assert str(caught.value).startswith(f"{tmp_path / 't.csv'}, line 2")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "columns 'path', 'sha256', "),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"a,b\n1,2\n", ", 'ood' and 'p_CLASS' for each class are missing. Add them;"),
        (",".join(HEADER[1:]).encode(), "line 1: column 'path' is missing. Add it;"),
        (",".join(HEADER[2:-4] + HEADER[-2:]).encode(), "columns 'path', 'sha256', 'abstain' and 'ood' are missing"),
        (",".join(HEADER).encode(), "no rows"),
        (",".join([*HEADER, "p_x"]).encode() + b"\n", "'p_x' stands twice"),
        (",".join(COLUMNS).encode() + b"\n", "0 probability columns"),
        (",".join(HEADER).encode() + b"\na,b\n", "line 2: 2 fields, but the header names 13"),
        (",".join(HEADER).encode() + b'\n"open', "not a CSV"),
        (
            ",".join(HEADER).encode() + b"\n" + b"a,,,,0,0,x,x,0.9,,,0.9,0.1\n" * 2,
            "line 3, field 'path': 'a' stands twice for",
        ),
    ],
)
def test_a_file_that_is_no_table_is_refused_with_a_sentence(tmp_path, content, words):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"t\.csv") as caught:
        read_table(tmp_path / "t.csv")
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["", "missing.csv"])
def test_a_folder_or_missing_file_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="cannot be read"):
        read_table(tmp_path / name)


def test_joining_keeps_rows_in_order_and_puts_columns_in_the_first_tables_order():
    first, second = example(seed=0), example(seed=1)
    turned = dataclasses.replace(second, classes=CLASSES[::-1], probabilities=second.probabilities[:, ::-1])
    joined = join([first, turned])
    assert len(joined) == 12
    np.testing.assert_array_equal(joined.probabilities[6:], second.probabilities)
    same(joined.select(joined.seed == 1), second)


def test_joining_refuses_other_classes_and_repeated_rows():
    with pytest.raises(UserError, match="differ in their classes"):
        join([example(), make_table(["a"], np.array([[0.5, 0.5]]), ("x", "y"))])
    with pytest.raises(UserError, match="stands in two tables for seed 0"):
        join([example(), example()])
    with pytest.raises(UserError, match="no predictions table"):
        join([])
