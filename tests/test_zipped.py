"""PyTorch's zip files are read without PyTorch as with it, and what is no plain state dict is not read at all."""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from rcmnet_jax.checkpoint import foreign, zipped
from rcmnet_jax.checkpoint.zipped import NotPlainError
from tests.pickles import Payload, save, tensor


def test_tensors_come_back_by_name_from_nested_dicts(tmp_path):
    one = np.arange(6, dtype=np.float32).reshape(2, 3)
    state = OrderedDict(one=tensor("0", one), two=tensor("1", one[0]))
    save(tmp_path / "w.pth", {"epoch": 3, "state_dict": state}, one, one[0])
    found = zipped.load(tmp_path / "w.pth")
    assert list(found) == ["state_dict"]
    np.testing.assert_array_equal(found["state_dict"]["one"], one)
    np.testing.assert_array_equal(found["state_dict"]["two"], one[0])


def test_it_reads_what_pytorch_reads(tmp_path):
    torch = pytest.importorskip("torch")
    random = torch.Generator().manual_seed(0)
    state = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).state_dict()
    base = torch.randn(4, 5, 6, generator=random)
    state |= {
        "transposed": base.permute(2, 0, 1), "part": base[1:, 2], "shared": base, "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3), "parameter": torch.nn.Parameter(base.double()), "half": base.half(),
        "brain": base.bfloat16(), "whole": torch.arange(5), "truth": base > 0,
    }  # fmt: skip
    torch.save({"model": state, "optimizer": {"lr": 0.1}}, tmp_path / "w.pth")
    found = zipped.load(tmp_path / "w.pth")["model"]
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert found[name].shape == tuple(value.shape), name
        np.testing.assert_array_equal(found[name].astype(np.float64), value.detach().double().numpy(), err_msg=name)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_names_a_function_ends_before_the_call(protocol, tmp_path):
    save(tmp_path / "bad.pth", {"w": Payload(tmp_path / "ran")}, protocol=protocol)
    with pytest.raises(NotPlainError, match="would call"):
        zipped.load(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


# What may be named is given something odd to do: set attributes on what was found, call one found thing with another.
@pytest.mark.parametrize(
    "code",
    [
        b"ctorch._utils\n_rebuild_parameter\n(cos\nsystem\nS'x'\ntR.",
        b"ctorch._utils\n_rebuild_parameter\n(S'__defaults__'\nctorch._utils\n_rebuild_parameter\ndb.",
        b"ctorch\nFloatStorage\n(tR.",
        b"ccollections\nOrderedDict\n(S'keys'\nccollections\nOrderedDict\ndb.",
        b"ctorch\nload\n.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"}S'w'\nctorch._utils\n_rebuild_tensor_v2\n((S'O'\nS'0'\ntI0\n(I1\nt(I1\ntI0\nNtRs.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"",
    ],
)
def test_odd_pickles_end_as_no_state_dict(code, tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.pth", "w") as archive:
        archive.writestr("archive/data.pkl", code)
        archive.writestr("archive/data/0", bytes(8))
    with pytest.raises(NotPlainError):
        zipped.load(tmp_path / "bad.pth")


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": (3, 3)},
        {"offset": 4},
        {"offset": -1},
        {"strides": (-3, 1)},
        {"strides": (1,)},
        {"shape": (10**9, 9), "strides": (0, 0)},
    ],
)
def test_a_tensor_outside_of_its_storage_is_refused(changes, tmp_path):
    values = np.zeros((2, 3), np.float32)
    save(tmp_path / "bad.pth", {"w": tensor("0", values, **changes)}, values)
    with pytest.raises(NotPlainError):
        zipped.load(tmp_path / "bad.pth")


def test_a_compressed_member_is_not_unpacked(tmp_path):
    values = np.zeros(1 << 20, np.float32)
    save(tmp_path / "bad.pth", {"w": tensor("0", values)}, values, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(NotPlainError, match="compressed"):
        zipped.load(tmp_path / "bad.pth")


def test_dicts_within_dicts_that_would_fill_the_memory_are_refused(tmp_path):
    content = {"w": 0}
    for _ in range(12):
        content = {str(i): content for i in range(100)}
    save(tmp_path / "bad.pth", content)
    with pytest.raises(NotPlainError, match="far more than its own size"):
        zipped.load(tmp_path / "bad.pth")


def test_one_large_storage_for_very_many_tensors_is_refused(tmp_path):
    values = np.zeros(1 << 18, np.float32)
    save(tmp_path / "bad.pth", {str(i): tensor("0", values) for i in range(50)}, values)
    with pytest.raises(NotPlainError, match="far more than its own size"):
        zipped.load(tmp_path / "bad.pth")


@pytest.mark.parametrize("part", [0.2, 0.6, 0.99])
def test_a_cut_off_file_is_refused(part, tmp_path):
    values = np.zeros((64, 64), np.float32)
    whole = save(tmp_path / "w.pth", {"w": tensor("0", values)}, values).read_bytes()
    (tmp_path / "w.pth").write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(NotPlainError):
        zipped.load(tmp_path / "w.pth")


def test_without_pytorch_a_state_dict_is_read_all_the_same(tmp_path, monkeypatch):
    values = np.ones((2, 3), np.float32)
    path: Path = save(tmp_path / "w.pth", {"state_dict": {"module.fc.weight": tensor("0", values)}}, values)
    monkeypatch.setattr(foreign.importlib.util, "find_spec", lambda _: None)
    np.testing.assert_array_equal(foreign.read_state(path)["fc.weight"], values)
