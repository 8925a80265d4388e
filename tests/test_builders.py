"""The package's own TFDS builders, on small files in the published layouts."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image

from rcmnet_jax.data.builders.__main__ import main
from rcmnet_jax.data.builders.bloodmnist import bloodmnist_dataset_builder as bloodmnist
from rcmnet_jax.data.images import decode
from rcmnet_jax.data.sources import Item, open_source
from tests.file_server import Server

pytest.importorskip("tensorflow_datasets")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A folder with the files as published, but tiny; TFDS keeps its sets beside it."""
    folder = tmp_path / "published"
    folder.mkdir()
    jpeg = io.BytesIO()
    Image.fromarray(np.full((8, 9, 3), 99, np.uint8)).save(jpeg, "jpeg")
    with zipfile.ZipFile(folder / "PBC_dataset_normal_DIB.zip", "w") as archive:
        archive.writestr("PBC_dataset_normal_DIB/ig/IG_1.jpg", jpeg.getvalue())
        archive.writestr("PBC_dataset_normal_DIB/neutrophil/.DS_169665.jpg", b"junk")
        archive.writestr("PBC_dataset_normal_DIB/platelet/PLATELET_1.jpg", jpeg.getvalue())
    rng = np.random.default_rng(0)
    arrays = {f"{s}_images": rng.integers(0, 256, (4, 28, 28, 3), np.uint8) for s in ("train", "val", "test")}
    labels = {f"{s}_labels": np.array([[0], [7], [3], [1]], np.uint8) for s in ("train", "val", "test")}
    np.savez_compressed(folder / "bloodmnist.npz", **arrays, **labels)
    md5 = hashlib.md5((folder / "bloodmnist.npz").read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(bloodmnist.FILES, "28", ("bloodmnist.npz", 1 << 20, f"md5:{md5}"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return folder


def test_a_file_that_is_not_the_published_one_is_refused(published, capsys):
    (published / "bloodmnist.npz").write_bytes(b"another")
    assert main(["bloodmnist/28", "--from", str(published)]) == 2
    assert "is not the published file (md5:" in capsys.readouterr().err


def test_without_the_file_at_hand_it_is_downloaded_and_checked(published, monkeypatch, tmp_path):
    monkeypatch.setenv("RCMNET_CACHE", str(tmp_path / "cache"))
    with Server() as server:
        server.content = (published / "bloodmnist.npz").read_bytes()
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        monkeypatch.setattr(bloodmnist, "RECORD", f"http://127.0.0.1:{server.server_port}")
        assert main(["bloodmnist/28"]) == 0
        server.shutdown()
    assert len(open_source("tfds:bloodmnist/28").items) == 12


def test_pbc_keeps_its_files_byte_for_byte(published):
    assert main(["pbc", "--from", str(published)]) == 0
    source = open_source("tfds:pbc")
    assert source.items == [Item("ig/IG_1.jpg", "ig"), Item("platelet/PLATELET_1.jpg", "platelet")]
    with zipfile.ZipFile(published / "PBC_dataset_normal_DIB.zip") as archive:
        assert source.read(source.items[0]) == archive.read("PBC_dataset_normal_DIB/ig/IG_1.jpg")


def test_bloodmnist_has_the_pixels_labels_split_and_paths_of_its_npz(published):
    assert main(["bloodmnist/28", "--from", str(published)]) == 0
    made, origin = open_source("tfds:bloodmnist/28"), open_source(str(published / "bloodmnist.npz"))
    assert made.items == origin.items
    for item in made.items:
        np.testing.assert_array_equal(decode(made.read(item)), decode(origin.read(item)))


@pytest.mark.parametrize("arguments", [["nothing"], ["bloodmnist/99"], ["pbc", "--from", "nowhere"]])
def test_what_cannot_be_built_ends_with_status_2_and_one_sentence(arguments, capsys, published):
    assert published.is_dir()
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_building_needs_no_tensorflow(published):
    code = f"""
import sys
from rcmnet_jax.data.builders.__main__ import main
main(["pbc", "--from", {str(published)!r}])
assert "tensorflow" not in sys.modules
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
