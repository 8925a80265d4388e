"""The networks against their PyTorch twin, and the facts about them that users rely on."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcmnet_jax.checkpoint.torch import from_torch, to_torch
from rcmnet_jax.config import MODEL_NAMES, ModelConfig
from rcmnet_jax.models import MODELS, Network, count, table
from rcmnet_jax.models.backend import portable
from tests.commands import ROOT
from tests.reference.compare import jax_step, off, problem, torch_step, worst
from tests.reference.save import ANSWERS, CASES, digest

SWITCHES = ("resnet18", "resnet18_cbam", "resnet18_mhsa", "rcmnet")


def parity(config, size, dtype, logits_within, gradients_within):
    pytest.importorskip("torch")
    case = problem(config, size)
    # The twin computes in float64 always: in float32 its own gradients are off by up to 2% of a tensor's norm, for a
    # rounding may turn a maximum or a ReLU to the other side. Which does hangs on the processor, so single tensors may
    # be off by as much here; the middle one is moved by that less (0.006 seen at 224 pixels).
    ours, theirs = jax_step(*case, dtype), torch_step(*case, np.float64)
    assert np.median(off(ours[3], theirs[3])) < gradients_within / 2
    names = ("loss", "training logits", "inference logits", "gradients", "statistics")
    bounds = (logits_within, logits_within, logits_within, gradients_within, logits_within)
    for name, a, b, bound in zip(names, ours, theirs, bounds, strict=True):
        assert worst(a, b) < bound, name


@pytest.mark.slow
@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
@pytest.mark.parametrize("name", SWITCHES)
def test_in_float64_it_equals_the_twin(name, size):
    parity(ModelConfig(name=name, width=8), size, np.float64, 1e-8, 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"gate": "identity"},
        {"position": "none"},
        {"position": "absolute"},
        {"cbam_placement": "stage"},
        {"cbam_kernel": 3, "cbam_reduction": 4},
        {"heads": 2},
        {"norm": "group"},
        {"name": "resnet50_cbam_mhsa"},
        {"name": "resnet34"},
    ],
)
def test_with_each_option_it_equals_the_twin(changes):
    parity(ModelConfig(**{"name": "rcmnet", "width": 8, **changes}), (64, 64), np.float64, 1e-8, 1e-8)


@pytest.mark.slow
def test_in_float32_it_equals_the_twin_to_rounding():
    parity(ModelConfig(width=8), (64, 64), np.float32, 1e-4, 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", [SWITCHES[0], SWITCHES[-1]])  # without any part, and with all
def test_at_full_width_and_224_pixels_it_equals_the_twin(name):
    parity(ModelConfig(name=name), (224, 224), np.float32, 1e-4, 2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 128])
def test_at_full_width_its_fast_forms_equal_xlas_own(size):
    """At sizes and a batch at which forms are chosen that small networks have no use for."""
    case = problem(ModelConfig(), (size, size), batch=16)
    ours = jax_step(*case, np.float32)
    with portable():
        theirs = jax_step(*case, np.float32)
    for part in (0, 1, 2, 4):
        assert worst(ours[part], theirs[part]) < 1e-4
    # Both are float32, and roundings turn maxima: single values next to zero say nothing (see `parity`).
    assert np.median(off(ours[3], theirs[3])) < 5e-3
    ours, theirs = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(side[3])]) for side in (ours, theirs))
    assert np.linalg.norm(ours - theirs) < 1e-2 * np.linalg.norm(theirs)


@pytest.mark.parametrize(
    ("name", "size", "parameters"),
    [
        ("resnet18", 224, 11_180_616),
        ("resnet18_cbam", 224, 11_270_496),
        ("rcmnet", 224, 8_131_424),
        ("rcmnet", 64, 8_126_304),
        ("resnet50", 224, 23_524_424),
    ],
)
def test_the_number_of_parameters_is_as_documented(name, size, parameters):
    assert count(Network(ModelConfig(name=name), classes=8, image_size=size).abstract()[0]) == parameters


@pytest.mark.slow
def test_the_docs_list_every_model_with_its_parameters_and_work():
    text = (ROOT / "docs" / "model.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| ([\d,]+) \| ([\d.]+) \| ([\d,]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert [row[0] for row in rows] == list(MODELS)
    for place, size in ((1, 224), (3, 64)):
        found = table(size, 8)
        assert [row[place] for row in rows] == [f"{row['parameters']:,}" for row in found]
        work = [float(row[place + 1]) for row in rows]
        np.testing.assert_allclose(work, [row["gflops"] for row in found], rtol=0, atol=0.0051)


@pytest.mark.slow
def test_every_name_of_the_config_can_be_built_and_is_listed():
    assert set(MODELS) == set(MODEL_NAMES)
    for name in MODEL_NAMES:
        network = Network(ModelConfig(name=name, width=8), classes=3, image_size=64)
        params, stats = network.abstract()
        assert params["fc"]["kernel"].shape[1] == 3
        assert all(isinstance(key, str) for key in (*params, *stats))
    assert {row["name"] for row in table(64, 8)} == set(MODEL_NAMES)


def test_initial_values_follow_from_the_seed_and_the_leafs_path():
    small, other = (Network(ModelConfig(name=name, width=8), classes=3, image_size=32) for name in SWITCHES[::3])
    first, again, third = small.init(5)[0], small.init(5)[0], small.init(6)[0]
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first["conv1"]["kernel"], third["conv1"]["kernel"])
    np.testing.assert_array_equal(first["conv1"]["kernel"], other.init(5)[0]["conv1"]["kernel"])


def test_weight_decay_spares_norms_biases_and_position_tables():
    network = Network(ModelConfig(width=8), classes=3, image_size=64)
    flat, _ = jax.tree_util.tree_flatten_with_path(network.abstract()[0])
    paths = [tuple(entry.key for entry in path) for path, _ in flat]
    assert {path[-1] for path in paths if network.decays(path)} == {"kernel"}
    assert {"scale", "bias", "rel_height", "rel_width"} <= {path[-1] for path in paths if not network.decays(path)}
    assert {network.depth(path) for path in paths} == {0, 1, 2, 3, 4, 5}


def test_bfloat16_computes_near_float32_and_answers_in_float32():
    network = Network(ModelConfig(name="resnet18", width=8), classes=3, image_size=32)
    params, stats = network.init(0)
    x = jnp.asarray(np.random.default_rng(0).random((2, 32, 32, 3)), jnp.float32)
    wide, narrow = (
        jax.jit(lambda x, d=d: network(params, stats, x, dtype=d)[0])(x) for d in (jnp.float32, jnp.bfloat16)
    )
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, wide, atol=0.1 * float(jnp.abs(wide).max()) + 0.02)


def test_another_size_of_image_is_refused_with_both_sizes():
    network = Network(ModelConfig(name="resnet18", width=8), classes=3, image_size=32)
    with pytest.raises(ValueError, match="32, 32"):
        network(*network.init(0), jnp.zeros((1, 64, 64, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_it_equals_what_the_twin_answered_where_there_was_pytorch(name):
    config, size = CASES[name]
    answers = np.load(ANSWERS)
    for key, value in digest(*jax_step(*problem(config, size), np.float64)).items():
        want = answers[f"{name}.{key}"]
        np.testing.assert_allclose(value, want, rtol=1e-6, atol=1e-7 * np.abs(want).max())


def test_a_state_dict_goes_to_pytorch_and_back_unchanged():
    for name, size in (("rcmnet", 64), ("resnet50_cbam", 32), ("vit_s16", 64)):
        trees = Network(ModelConfig(name=name, width=8), classes=3, image_size=size).init(0)
        back = from_torch(to_torch(*trees))
        assert jax.tree.structure(trees) == jax.tree.structure(back)
        jax.tree.map(np.testing.assert_array_equal, trees, back)


def test_names_and_layouts_are_torchvisions_and_those_of_cbams_authors():
    state = to_torch(*Network(ModelConfig(width=8), classes=3, image_size=64).init(0))
    assert state["conv1.weight"].shape == (8, 3, 7, 7)
    assert state["layer2.0.downsample.1.running_var"].shape == (16,)
    assert state["layer4.0.cbam.ChannelGate.mlp.1.weight"].shape == (4, 64)
    assert state["layer4.0.cbam.SpatialGate.spatial.conv.weight"].shape == (1, 2, 7, 7)
    assert state["fc.weight"].shape == (3, 64)


def test_the_vision_transformer_equals_pytorchs_encoder():
    torch = pytest.importorskip("torch")
    network = Network(ModelConfig(name="vit_s16", width=8), classes=3, image_size=(32, 48))
    params, _ = network.init(0)
    state = {k: torch.from_numpy(np.array(v)) for k, v in to_torch(params, {}).items()}
    x = np.random.default_rng(0).random((2, 32, 48, 3), np.float32)
    shift, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    patches = torch.nn.functional.conv2d(
        ((torch.from_numpy(x) - shift) / spread).permute(0, 3, 1, 2),
        state["patch_embed.proj.weight"],
        state["patch_embed.proj.bias"],
        stride=16,
    )
    y = patches.flatten(2).transpose(1, 2) + state["position"].reshape(1, -1, 48)
    layer = torch.nn.TransformerEncoderLayer(48, 6, 192, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True).eval()
    for i in range(12):
        names = {"self_attn.in_proj_": "attn.qkv.", "self_attn.out_proj.": "attn.proj.", "linear": "mlp.fc"}
        own = {}
        for name in layer.state_dict():
            ours = name
            for a, b in names.items():
                ours = ours.replace(a, b)
            own[name] = state[f"blocks.{i}.{ours}"]
        layer.load_state_dict(own)
        y = layer(y)
    y = torch.nn.functional.layer_norm(y, (48,), state["norm.weight"], state["norm.bias"], 1e-6).mean(1)
    want = torch.nn.functional.linear(y, state["fc.weight"], state["fc.bias"]).detach().numpy()
    np.testing.assert_allclose(network(params, {}, x)[0], want, rtol=1e-4, atol=1e-4)
