"""Soft labels: joined on the path, averaged, and refused where they cannot be what is meant."""

from __future__ import annotations

import re

import numpy as np
import pytest

from rcmnet_jax.data.sources import open_source
from rcmnet_jax.errors import UserError
from rcmnet_jax.evaluation.soft_labels import read
from rcmnet_jax.evaluation.tables import make_table, write_table
from rcmnet_jax.settings import from_dict
from tests.commands import launch

PATHS = np.array(["a/1.png", "a/2.png", "b/3.png"])


def write(file, paths, rows, classes=("x", "y"), **fields):
    write_table(make_table(paths, np.array(rows), classes, **fields), file)
    return str(file)


def test_all_rows_of_a_path_are_averaged_in_the_datas_order_of_classes(tmp_path):
    one = write(
        tmp_path / "1.csv", ["a/2.png", "b/3.png", "a/2.png"], [[0.2, 0.8], [1.0, 0.0], [0.4, 0.6]], seed=[0, 0, 1]
    )
    other = write(tmp_path / "2.csv", ["z.png", "a/2.png"], [[0.5, 0.5], [0.7, 0.3]], classes=("y", "x"))
    found = read([one, other], PATHS, ("x", "y"))
    np.testing.assert_allclose(found, [[0, 0], [0.3, 0.7], [1, 0]], atol=1e-9)


@pytest.mark.parametrize(
    ("classes", "paths", "sentence"),
    [
        (("x", "z"), ["a/1.png"], r"1\.csv: no column p_y"),
        (("x", "y", "z"), ["a/1.png"], r"1\.csv: a column p_z, which is no class"),
        (("x", "y"), ["elsewhere/1.png"], r"soft_labels=.*1\.csv: names none of the training images, such as a/1\.png"),
    ],
)
def test_a_table_of_other_classes_or_other_images_is_refused(tmp_path, classes, paths, sentence):
    file = write(tmp_path / "1.csv", paths, [np.full(len(classes), 1 / len(classes))], classes=classes)
    with pytest.raises(UserError, match=sentence):
        read([file], PATHS, ("x", "y"))


def test_the_setting_takes_tables_with_commas():
    assert from_dict({"source": {"soft_labels": "one.csv,two.csv"}}).source.soft_labels == ("one.csv", "two.csv")


@pytest.mark.slow
def test_a_run_learns_from_tables_with_every_part_of_the_recipe_on(tmp_path):
    source = open_source("synthetic:pbc-tiny")
    classes = tuple(sorted({item.label for item in source.items}))
    paths = [item.path for item in source.items]
    soft = write(tmp_path / "soft.csv", paths, np.full((len(paths), len(classes)), 1 / len(classes)), classes=classes)
    recipe = {
        "model.name": "resnet18", "image_size": 40, "source.start_size": 32, "source.epochs": 1.0,
        "source.soft_labels": soft,
        **{f"source.augment.{name}": 0.3 for name in ("mixup", "cutmix", "reinhard", "hue", "gamma", "white", "grey")},
        **{f"source.augment.{name}": 0.3 for name in ("erase", "blur", "noise", "scale")},
    }  # fmt: skip
    words = [f"--config.{name}={value}" for name, value in recipe.items()]
    status, said, err = launch(tmp_path / "run", *words, config="configs/pbc.py:smoke")
    assert status == 0, err
    assert re.search(r"(\d+) of \1 training images have soft labels", said + err)
    assert len((tmp_path / "run/predictions.csv").read_text("utf-8").splitlines()) > 1
