"""Exports answer as their bundle does, each by its own example in a process that has nothing of ours."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from rcmnet_jax import bundle as bundles
from rcmnet_jax.bundle import Bundle
from rcmnet_jax.config import ModelConfig
from rcmnet_jax.data.images import ImageRule
from rcmnet_jax.errors import GuardError, UserError
from rcmnet_jax.export import command, folder, pytorch, stablehlo
from rcmnet_jax.export.command import export
from rcmnet_jax.export.standalone import preprocessing
from rcmnet_jax.files import verify_sums
from rcmnet_jax.models import Network
from rcmnet_jax.training.sharding import Placement
from tests.commands import ROOT, run

NEEDS = {"stablehlo": ("jax",), "torch": ("torch",), "onnx": ("torch", "onnx", "onnxscript", "onnxruntime")}


def make(size=32, classes=4, imported=False, views="one", **options):
    """A bundle whose leaves are all moved off their start, since gates of scale 0 would hide mistakes."""
    network = Network(ModelConfig(width=8, **options), classes=classes, image_size=size, imported=imported)
    random = np.random.default_rng(0)
    params, stats = network.init(0)
    params = jax.tree.map(lambda a: np.float32(a + 0.05 * random.standard_normal(a.shape)), params)
    stats = jax.tree.map(lambda a: np.float32(3 * a + 0.2 * random.random(a.shape)), stats)
    names = tuple(f"class {k}" for k in range(classes))
    return Bundle(network, names, ImageRule(size), params, stats, {}, {"temperature": 1.7}, views)


def need(form):
    for package in NEEDS.get(form, ()):
        pytest.importorskip(package)


def example(place: Path, *images: Path) -> tuple[np.ndarray, str]:
    """Probabilities that the folder's example prints, run from elsewhere without our package and flags."""
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PYTHONPATH", "JAX_ENABLE_X64")}
    if "rcmnet_jax" in (place / "example.py").read_text():
        kept["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-W", "ignore", str(place / "example.py"), *map(str, images)]
    done = subprocess.run(command, capture_output=True, text=True, env=kept, cwd=place.parent, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    rows = [re.findall(r"[01]\.\d{6}", line) for line in done.stdout.splitlines() if "difference" not in line]
    return np.array(rows, float), done.stdout


MODELS = [
    {"name": "rcmnet"},
    {"name": "resnet18", "views": "dihedral"},
    {"name": "rcmnet", "norm": "group", "size": 48},
    {"name": "resnet50_cbam_mhsa", "position": "absolute", "cbam_placement": "stage", "imported": True, "size": 40},
    {"name": "resnet34_mhsa", "position": "none"},
    {"name": "vit_s16", "size": 40},
]


def title(options):
    return "-".join(str(v) for v in options.values())


@pytest.mark.parametrize("options", MODELS, ids=title)
def test_plain_pytorch_answers_as_the_bundle(options):
    need("torch")
    bundle = make(**options)
    images = folder.check_images(bundle.rule.size)
    wanted = bundle.answers(images, Placement.everywhere()).probabilities
    np.testing.assert_allclose(pytorch.answers(pytorch.module_of(bundle), images), wanted, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", MODELS, ids=title)
@pytest.mark.parametrize("form", ["stablehlo", "onnx"])
def test_graphs_answer_any_number_of_images_as_the_bundle(form, options, tmp_path):
    need(form)
    bundle = make(**options)
    images = folder.check_images(bundle.rule.size, 5)
    wanted = bundle.answers(images, Placement.everywhere()).probabilities
    writer = command.writer(form)
    np.testing.assert_allclose(writer(bundle, tmp_path, images), wanted, atol=1e-5)
    np.testing.assert_allclose(writer(bundle, tmp_path, images[:1]), wanted[:1], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", MODELS[:3], ids=title)
@pytest.mark.parametrize("form", command.FORMS)
def test_the_example_of_each_form_answers_as_the_bundle(form, options, tmp_path):
    need(form)
    bundle = make(**options)
    bundles.write(tmp_path / "bundle", bundle)
    export(tmp_path / "bundle", form, tmp_path / "out")
    assert verify_sums(tmp_path / "out") == []
    found, said = example(tmp_path / "out")
    with np.load(tmp_path / "out" / "check.npz") as check:
        wanted = bundle.answers(check["images"], Placement.everywhere()).probabilities
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert float(said.split("bundle: ")[1]) < 1e-5
    assert len((tmp_path / "out" / "example.py").read_text().splitlines()) < 30


def test_the_program_for_all_platforms_takes_none_of_the_forms_made_for_the_cpu():
    bundle = make(size=64, name="resnet18")
    images = folder.check_images(64)
    bundle.answers(images, Placement.everywhere())  # traced for the CPU first: nothing of it may be reused
    program = stablehlo.program(bundle)
    assert program.platforms == ("cpu", "cuda", "tpu")
    text = program.mlir_module()
    assert "stablehlo.convolution" in text
    assert "gather" not in text
    assert "HIGHEST" in text


@pytest.mark.slow
def test_the_command_exports_and_its_example_reads_an_image_file(tmp_path):
    bundles.write(tmp_path / "bundle", make(name="rcmnet"))
    status, said, err = run(
        "-m", "rcmnet_jax", "export", tmp_path / "bundle", "--to", "stablehlo", "--output", tmp_path / "out"
    )
    assert status == 0, err
    assert "within" in said
    picture = np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "cell.png")
    found, _ = example(tmp_path / "out", tmp_path / "cell.png")
    status, _, err = run(
        "-m", "rcmnet_jax", "predict", tmp_path / "bundle", tmp_path / "cell.png", "--output", tmp_path / "p.csv"
    )
    assert status == 0, err
    wanted = (tmp_path / "p.csv").read_text().splitlines()[1].split(",")[-4:]
    np.testing.assert_allclose(found[0], np.array(wanted, float), atol=1e-5)


@pytest.mark.parametrize("square", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("crop", [1.0, 0.7])
@pytest.mark.parametrize("shape", [(40, 61), (33, 33), (1, 9), (90, 20)])
@pytest.mark.parametrize("frame", [0, 50])
def test_the_shipped_preprocessing_is_the_image_rule_to_the_last_bit(square, crop, shape, frame):
    from rcmnet_jax.data.images import standardise

    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    rule = ImageRule(33, square=square, crop=crop, resample="bicubic", frame=frame)
    np.testing.assert_array_equal(preprocessing.standardise(image, rule.to_dict()), standardise(image, rule))


def test_a_folder_with_something_in_it_is_never_written_over(tmp_path):
    bundles.write(tmp_path / "bundle", make(name="resnet18"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="nothing is written over"):
        export(tmp_path / "bundle", "safetensors", tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    bundles.write(tmp_path / "bundle", make(name="resnet18"))
    monkeypatch.setattr(pytorch, "write", lambda *given: np.zeros((len(given[-1]), 4)))
    with pytest.raises(GuardError, match="differ"):
        export(tmp_path / "bundle", "torch", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_missing_package_is_named_with_the_way_to_get_it(tmp_path, monkeypatch):
    bundles.write(tmp_path / "bundle", make(name="resnet18"))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(UserError, match=r"onnxscript.*requirements-extra\.txt"):
        export(tmp_path / "bundle", "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_weights_have_torchvisions_names_and_come_back_as_they_were(tmp_path):
    from safetensors.numpy import load_file

    from rcmnet_jax.checkpoint.torch import from_torch

    bundle = make(name="resnet18")
    bundles.write(tmp_path / "bundle", bundle)
    export(tmp_path / "bundle", "safetensors", tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert state["layer2.0.downsample.1.running_var"].shape == (16,)
    assert state["conv1.weight"].shape == (8, 3, 7, 7)
    jax.tree.map(np.testing.assert_array_equal, from_torch(state), (bundle.params, bundle.batch_stats))
