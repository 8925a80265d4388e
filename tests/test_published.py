"""torchvision's ImageNet weights, from a server on this machine: fetched once, checked, read, never executed."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from rcmnet_jax import bundle as bundles
from rcmnet_jax.checkpoint import initial, published
from rcmnet_jax.checkpoint.torch import to_torch
from rcmnet_jax.checks import check
from rcmnet_jax.config import MODEL_NAMES, ModelConfig
from rcmnet_jax.convert import convert
from rcmnet_jax.errors import UserError
from rcmnet_jax.models import Network
from rcmnet_jax.settings import from_dict
from tests.commands import launch, run
from tests.file_server import Server
from tests.pickles import Payload, save, save_state


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server in the place of torchvision's, with an empty cache folder, and networks of width 8."""
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("RCMNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(published, "BASE", f"http://127.0.0.1:{made.server_port}/models")
    monkeypatch.setattr(published, "WIDTH", 8)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between attempts
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def network(name="rcmnet"):
    return Network(ModelConfig(name=name, width=8), classes=3, image_size=32, imported=True)


def publish(server, monkeypatch, path: Path, digest: str = "") -> None:
    """Serves the file at `path`, under a name that carries its hash, or the one given."""
    server.content = path.read_bytes()
    digest = digest or hashlib.sha256(server.content).hexdigest()[:8]
    monkeypatch.setattr(published, "FILES", {"resnet18": f"resnet18-{digest}.pth"})


@pytest.fixture
def state(server, monkeypatch, tmp_path):
    made = to_torch(*Network(ModelConfig(name="resnet18", width=8), classes=10, image_size=32).init(7))
    publish(server, monkeypatch, save_state(tmp_path / "published.pth", made))
    return made


def cached(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_a_model_starts_from_the_published_body_with_every_leaf_accounted_for(server, state):
    start = network().init(0)
    params, stats, report = initial.load("imagenet", network(), start)
    np.testing.assert_array_equal(
        params["layer1"]["0"]["conv1"]["kernel"].transpose(3, 2, 0, 1), state["layer1.0.conv1.weight"]
    )
    np.testing.assert_array_equal(stats["bn1"]["var"], state["bn1.running_var"])
    np.testing.assert_array_equal(params["fc"]["kernel"], start[0]["fc"]["kernel"])
    kinds = {kind: {leaf.name for leaf in report.of(kind)} for kind in ("loaded", "new", "unused")}
    assert {"params/fc/kernel", "params/layer4/0/conv2/kernel"} <= kinds["unused"]
    assert any("query" in name for name in kinds["new"])
    assert server.asked == [f"/models/{published.FILES['resnet18']}"]
    initial.load("imagenet", network(), start)
    assert len(server.asked) == 1


def test_gates_start_open_where_the_word_stands_for_weights():
    assert initial.is_imported("imagenet")


def test_convert_takes_the_word_as_well(state, tmp_path, monkeypatch):
    monkeypatch.setattr(published, "fetch", lambda *_: tmp_path / "published.pth")
    made = convert(Path("imagenet"), tmp_path / "bundle", "resnet18", size=32)
    np.testing.assert_array_equal(made.params["fc"]["kernel"].T, state["fc.weight"])
    assert bundles.load(tmp_path / "bundle").provenance["weights"]["file"] == "published.pth"


@pytest.mark.parametrize("spoil", ["hash", "cut", "page"])
def test_what_is_not_the_published_file_is_refused_and_not_kept(spoil, server, state, monkeypatch, tmp_path):  # noqa: ARG001
    if spoil == "hash":
        publish(server, monkeypatch, tmp_path / "published.pth", digest="f37072fd")
    elif spoil == "cut":
        server.most = len(server.content) // 2
    else:
        server.content = b"<html>please log in</html>"
    with pytest.raises(UserError, match="imagenet" if spoil == "cut" else "does not match sha256:"):
        initial.load("imagenet", network(), network().init(0))
    assert [name for name in cached(tmp_path) if not name.endswith(".part")] == []


def test_a_hostile_file_under_its_own_hash_runs_nothing(server, monkeypatch, tmp_path):
    publish(server, monkeypatch, save(tmp_path / "bad.pth", {"conv1.weight": Payload(tmp_path / "ran")}))
    with pytest.raises(UserError, match="would run code"):
        initial.load("imagenet", network(), network().init(0))
    assert not (tmp_path / "ran").exists()


def test_without_a_network_the_sentence_says_what_to_do(server, monkeypatch):  # noqa: ARG001
    monkeypatch.setattr(published, "BASE", "http://127.0.0.1:9/models")
    with pytest.raises(UserError, match=r"cannot be reached.*download it elsewhere and give the file's path") as caught:
        published.fetch(ModelConfig(width=8))
    assert str(caught.value).count(". ") == 0


RUN = """
import sys
import launch
from rcmnet_jax.checkpoint import published
published.BASE, published.FILES, published.WIDTH = sys.argv.pop(1), {"resnet18": sys.argv.pop(1)}, 8
sys.exit(launch.guarded(launch.main))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("state")
def test_a_whole_run_trains_on_from_the_published_weights_with_its_gates_open(server, tmp_path):
    place = (published.BASE, published.FILES["resnet18"])
    words = ("--config=configs/pbc.py:smoke", "--config.source.init_from=imagenet", "--config.source.epochs=0.5")
    words = (*words, f"--workdir={tmp_path / 'run'}")
    status, said, err = run("-c", RUN, *place, *words)
    assert status == 0, err
    assert "initialised from imagenet" in said
    account = json.loads((tmp_path / "run/pretrain/transfer.json").read_text())
    assert account["loaded"]["leaves"] > 70
    assert "params/fc/kernel" in account["new"]["names"]
    assert bundles.load(tmp_path / "run/bundle").network.imported
    assert len(server.asked) == 1


@pytest.mark.slow
def test_a_run_without_a_network_ends_with_status_2_and_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("RCMNET_CACHE", str(tmp_path / "cache"))
    status, _, err = launch(tmp_path / "run", "--config.source.init_from=imagenet", config="configs/cart.py")
    assert status == 2, err
    assert err.startswith("error: https://download.pytorch.org/models/resnet18-f37072fd.pth cannot be reached")
    assert err.count("\n") == 1
    assert not (tmp_path / "run" / "data").exists()


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_each_model_has_published_weights_or_is_refused_before_anything_runs(name):
    config = from_dict({"model": {"name": name}, "source": {"init_from": "imagenet"}})
    if name.startswith("vit"):
        with pytest.raises(UserError, match=r"no such weights for model vit_s16.*Name a file"):
            check(config)
    else:
        check(config)
        assert published.file_of(config.model).startswith("resnet18" if name == "rcmnet" else name.split("_")[0])


def test_another_width_than_the_published_is_refused():
    with pytest.raises(UserError, match=r"width 64, model\.width is 8"):
        check(from_dict({"model": {"width": 8}, "source": {"init_from": "imagenet"}}))
