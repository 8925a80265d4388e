"""Weights of others come in whole or are refused by name, and nothing in their files is ever run."""

from __future__ import annotations

import json
import pickle

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from rcmnet_jax import bundle as bundles
from rcmnet_jax.bundle import Bundle
from rcmnet_jax.checkpoint import foreign, initial
from rcmnet_jax.checkpoint.torch import to_torch
from rcmnet_jax.config import ModelConfig
from rcmnet_jax.convert import convert
from rcmnet_jax.data.images import ImageRule
from rcmnet_jax.errors import UserError
from rcmnet_jax.evaluation.predict import forward
from rcmnet_jax.export.weights import write_weights
from rcmnet_jax.models import Network
from rcmnet_jax.training.sharding import Placement
from tests.commands import run
from tests.pickles import Payload, save, save_state


def network(name="resnet18", classes=3, size=32):
    return Network(ModelConfig(name=name, width=8), classes=classes, image_size=size)


def state_of(name="resnet18", classes=3, size=32, seed=7):
    return to_torch(*network(name, classes, size).init(seed))


@pytest.fixture
def weights(tmp_path):
    save_file(state_of(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def test_a_whole_file_becomes_a_bundle_with_its_head_and_the_same_values(weights, tmp_path, capsys):
    made = convert(weights, tmp_path / "bundle", "resnet18", size=32)
    assert made.classes == ("class_0", "class_1", "class_2")
    read = bundles.load(tmp_path / "bundle")
    jax.tree.map(np.testing.assert_array_equal, (read.params, read.batch_stats), network().init(7))
    said = capsys.readouterr().out
    assert "loaded: 102 leaves" in said
    assert "new" not in said
    assert read.provenance["weights"]["file"] == "weights.safetensors"


def test_names_for_the_classes_keep_the_head_where_they_are_as_many(weights, tmp_path, capsys):
    made = convert(weights, tmp_path / "same", "resnet18", size=32, classes=("a", "b", "c"))
    np.testing.assert_array_equal(made.params["fc"]["kernel"].T, state_of()["fc.weight"])
    made = convert(weights, tmp_path / "more", "resnet18", size=32, classes=("a", "b", "c", "d"))
    assert made.params["fc"]["kernel"].shape == (64, 4)
    assert "the head starts at random" in capsys.readouterr().out


def test_what_the_file_lacks_is_named_and_only_allowed_by_word(tmp_path, capsys):
    partial = {k: v for k, v in state_of().items() if not k.startswith(("layer4", "fc"))}
    save_file(partial, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="Name them with --classes"):
        convert(tmp_path / "w.safetensors", tmp_path / "bundle", "resnet18", size=32)
    with pytest.raises(UserError, match=r"25 leaves that the file lacks: .*layer4\.0\.conv1 \(1\).*--allow-missing"):
        convert(tmp_path / "w.safetensors", tmp_path / "bundle", "resnet18", size=32, classes=("a", "b"))
    assert not (tmp_path / "bundle").exists()
    made = convert(
        tmp_path / "w.safetensors", tmp_path / "bundle", "rcmnet", size=32, classes=("a", "b"), allow_missing=True
    )
    np.testing.assert_array_equal(made.params["conv1"]["kernel"].transpose(3, 2, 0, 1), partial["conv1.weight"])
    said = capsys.readouterr().out
    assert "loaded: 75 leaves" in said
    assert "new: " in said


def test_imported_features_pass_through_gates_that_start_at_one(weights, tmp_path):
    made = convert(weights, tmp_path / "bundle", "resnet18_cbam", size=32, allow_missing=True)
    plain = convert(weights, tmp_path / "plain", "resnet18", size=32)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    found, wanted = (b.answers(images, Placement.everywhere()).probabilities for b in (made, plain))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_gates_that_a_file_brings_are_as_they_were_trained(tmp_path):
    """Gates of others are the paper's; an export of ours says whether its are twice as wide."""
    save_file(state_of("resnet18_cbam"), tmp_path / "w.safetensors")
    made = convert(tmp_path / "w.safetensors", tmp_path / "bundle", "resnet18_cbam", size=32)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    wanted = forward(network("resnet18_cbam"), *network("resnet18_cbam").init(7), images, Placement.everywhere())
    found = forward(made.network, made.params, made.batch_stats, images, Placement.everywhere())
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert not initial.is_imported(str(tmp_path / "w.safetensors"))
    for imported in (True, False):
        (tmp_path / "architecture.json").write_text(json.dumps({"imported": imported, "model": {}}))
        assert initial.is_imported(str(tmp_path / "w.safetensors")) == imported
    (tmp_path / "architecture.json").write_text("[]")  # another project's
    assert not initial.is_imported(str(tmp_path / "w.safetensors"))
    (tmp_path / "architecture.json").write_text("{")
    with pytest.raises(UserError, match=r"architecture\.json: cannot be read"):
        initial.is_imported(str(tmp_path / "w.safetensors"))


def test_an_export_of_ours_is_read_back_as_the_model_that_it_was(tmp_path):
    """Its gates are twice as wide by a setting, which no name or shape of the weights tells."""
    gated = Network(ModelConfig(name="resnet18_cbam", width=8, gate="identity"), classes=3, image_size=32)
    bundles.write(tmp_path / "b", Bundle(gated, ("a", "b", "c"), ImageRule(32), *gated.init(0), {}))
    (tmp_path / "e").mkdir()
    write_weights(bundles.load(tmp_path / "b"), tmp_path / "e")
    made = convert(tmp_path / "e" / "model.safetensors", tmp_path / "again", "resnet18_cbam")
    assert made.network.config == gated.config
    assert (made.network.image_size, made.rule.size) == ((32, 32), 32)
    with pytest.raises(UserError, match=r"its model\.gate is 'identity', here it is 'auto'"):
        initial.load(str(tmp_path / "e" / "model.safetensors"), network("resnet18_cbam"), gated.init(1))


def test_a_vision_transformer_with_other_heads_is_refused(tmp_path):
    """ViT-Ti's 3 heads stand in no shape of its file: with ViT-S's 6 it would answer otherwise without a word."""
    state = {"patch_embed.proj.weight": np.zeros((192, 3, 16, 16), np.float32), "head.weight": np.zeros((2, 192), "f4")}
    save_file(state, tmp_path / "tiny.safetensors")
    with pytest.raises(UserError, match="has 192 channels, as ViT-Ti, whose heads are not"):
        convert(tmp_path / "tiny.safetensors", tmp_path / "made", "vit_s16", allow_missing=True)
    assert not (tmp_path / "made").exists()


def test_settings_of_parts_that_an_export_has_not_are_not_compared(tmp_path):
    bundles.write(tmp_path / "b", Bundle(network(), ("a", "b", "c"), ImageRule(32), *network().init(0), {}))
    (tmp_path / "e").mkdir()
    write_weights(bundles.load(tmp_path / "b"), tmp_path / "e")
    gated = Network(ModelConfig(name="resnet18_cbam", width=8, gate="paper"), classes=3, image_size=32)
    assert initial.load(str(tmp_path / "e" / "model.safetensors"), gated, gated.init(1))[2].of("loaded")


def test_a_bundle_without_gates_opens_those_of_a_model_that_starts_from_it(tmp_path):
    bundles.write(tmp_path / "plain", Bundle(network(), ("a", "b", "c"), ImageRule(32), *network().init(0), {}))
    assert initial.is_imported(str(tmp_path / "plain"))
    gated = network("resnet18_cbam")
    bundles.write(tmp_path / "gated", Bundle(gated, ("a", "b", "c"), ImageRule(32), *gated.init(0), {}))
    assert not initial.is_imported(str(tmp_path / "gated"))


def test_timms_vision_transformer_comes_in_with_its_head_and_a_warning_of_its_class_token(tmp_path, capsys):
    state = state_of("vit_s16", size=64)
    position = state.pop("position").reshape(1, 16, 48)
    token = np.zeros((1, 1, 48), np.float32)
    state |= {"pos_embed": np.concatenate([token, position], 1), "cls_token": token}
    state |= {f"head.{k}": state.pop(f"fc.{k}") for k in ("weight", "bias")}
    save_file(state, tmp_path / "vit.safetensors")
    made = convert(tmp_path / "vit.safetensors", tmp_path / "bundle", "vit_s16", size=64)
    jax.tree.map(np.testing.assert_array_equal, made.params, network("vit_s16", size=64).init(7)[0])
    said = capsys.readouterr().out
    assert "unused: 1 leaves" in said
    assert "reads a class token" in said


def test_an_existing_bundle_is_not_written_over(weights, tmp_path):
    convert(weights, tmp_path / "bundle", "resnet18", size=32)
    with pytest.raises(UserError, match="nothing is written over"):
        convert(weights, tmp_path / "bundle", "resnet18", size=32)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"", "a.safetensors"),
        (b"\xff" * 64, "a.safetensors"),
        (b"\x08\0\0\0\0\0\0\0{}      ", "a.safetensors"),
        (b"text", "a.txt"),
        (None, "missing.safetensors"),
    ],
)
def test_files_that_hold_no_weights_are_refused(content, name, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        convert(tmp_path / name, tmp_path / "bundle", "resnet18", size=32)


def test_names_that_contradict_each_other_are_refused(tmp_path):
    one = np.zeros((1, 1), np.float32)
    save_file(
        {"conv1": one, "conv1.weight": one, "fc.weight": np.zeros((2, 1), np.float32)}, tmp_path / "a.safetensors"
    )
    with pytest.raises(UserError, match="not a network's state dict"):
        convert(tmp_path / "a.safetensors", tmp_path / "bundle", "resnet18", size=32)


@pytest.fixture(params=["with PyTorch", "without"])
def pytorch(request, monkeypatch):
    """Both ways of reading: by PyTorch, and by our own reader where there is none."""
    if request.param == "without":
        find = foreign.importlib.util.find_spec
        monkeypatch.setattr(foreign.importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    else:
        pytest.importorskip("torch")


@pytest.mark.usefixtures("pytorch")
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("form", ["zip", "bare"])
def test_a_hostile_pickle_is_refused_and_nothing_in_it_runs(form, protocol, tmp_path):
    bad, content = tmp_path / "bad.pth", {"conv1.weight": Payload(tmp_path / "ran")}
    if form == "zip":
        save(bad, content, protocol=protocol)
    else:
        bad.write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(UserError, match=r"bad\.pth.*was not read"):
        convert(bad, tmp_path / "bundle", "resnet18", size=32)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_the_command_refuses_a_hostile_pth_with_status_2_and_takes_a_plain_one(tmp_path):
    save(tmp_path / "bad.pth", {"conv1.weight": Payload(tmp_path / "ran"), **state_of()})
    words = ("--model", "resnet18", "--size", "32")
    status, _, err = run("-m", "rcmnet_jax", "convert", tmp_path / "bad.pth", tmp_path / "bundle", *words)
    assert status == 2
    assert "Traceback" not in err
    assert err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.pth"]
    save_state(tmp_path / "good.pth", {f"module.{k}": v for k, v in state_of().items()})
    status, _, err = run(
        "-m", "rcmnet_jax", "convert", tmp_path / "good.pth", tmp_path / "bundle", *words, "--classes", "a,b,c"
    )
    assert status == 0, err
    made = bundles.load(tmp_path / "bundle")
    assert made.classes == ("a", "b", "c")
    np.testing.assert_array_equal(made.params["fc"]["kernel"].T, state_of()["fc.weight"])


@pytest.mark.slow
def test_the_command_verifies_what_pytorch_saved_on_real_images(tmp_path):
    torch = pytest.importorskip("torch")
    state = {k: torch.tensor(v) for k, v in state_of().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "good.pth")
    status, said, err = run(
        "-m", "rcmnet_jax", "convert", tmp_path / "good.pth", tmp_path / "bundle", "--model", "resnet18",
        "--size", "32", "--verify", "synthetic:cart-tiny",
    )  # fmt: skip
    assert status == 0, err
    assert "of plain PyTorch's" in said


@pytest.mark.usefixtures("pytorch")
def test_a_run_starts_from_a_pth_as_from_safetensors(weights, tmp_path):
    save_state(tmp_path / "w.pth", state_of())
    start = network().init(0)
    found = [initial.load(str(path), network(), start) for path in (weights, tmp_path / "w.pth")]
    jax.tree.map(np.testing.assert_array_equal, found[0][:2], found[1][:2])
    np.testing.assert_array_equal(found[1][0]["fc"]["kernel"], start[0]["fc"]["kernel"])


def test_without_pytorch_a_file_of_its_older_form_is_refused_with_the_way_out(tmp_path, monkeypatch):
    (tmp_path / "w.pth").write_bytes(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")
    monkeypatch.setattr(foreign.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"w\.pth.*requirements-extra\.txt"):
        convert(tmp_path / "w.pth", tmp_path / "bundle", "resnet18", size=32)
