"""The start-up check: content with a right compiler, and not with a wrong one or a wrong model."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import pytest

from rcmnet_jax import canary
from rcmnet_jax.errors import GuardError
from rcmnet_jax.models import cbam, mhsa
from tests.commands import ROOT, launch, run


def test_it_is_content_here():
    canary.check()


def test_what_passed_is_asked_again_only_where_something_has_changed(tmp_path, monkeypatch):
    asked = []

    def known_wrong():
        asked.append(1)
        yield from ()

    monkeypatch.setattr(canary, "_known_wrong", known_wrong)
    monkeypatch.setattr(canary, "_attention", list)
    monkeypatch.setattr(canary, "_gates", list)
    canary.check(tmp_path)
    canary.check(tmp_path)
    assert len(asked) == 1
    canary.check()
    assert len(asked) == 2
    monkeypatch.setenv("XLA_FLAGS", "--xla_another=1")
    canary.check(tmp_path)
    assert len(asked) == 3
    for unwritable in (tmp_path / "absent", Path("/proc/1")):
        asked.clear()
        canary.check(unwritable)
        canary.check(unwritable)
        assert len(asked) == 2


def test_what_failed_is_not_taken_as_passed(tmp_path, monkeypatch):
    monkeypatch.setattr(canary, "_attention", lambda: iter([("it", np.ones(1), np.zeros(1))]))
    for _ in range(2):
        with pytest.raises(GuardError):
            canary.check(tmp_path)


def without_scale(query, key, value, bias=None):
    return mhsa_attend(2 * query, key, value, bias)


mhsa_attend = mhsa.attend


@jax.custom_vjp
def leaky(x, gate):
    return x * gate


leaky.defvjp(lambda x, gate: (x * gate, gate), lambda gate, dy: (1.01 * dy * gate, jax.numpy.zeros_like(gate)))


@pytest.mark.parametrize(
    ("module", "name", "wrong", "said"),
    [
        (mhsa, "attend", without_scale, "self-attention wrong"),
        (mhsa, "_offsets", lambda n: mhsa_offsets(n)[::-1], "self-attention wrong"),
        (cbam, "summarise_channels", lambda x: cbam_summary(x)[..., ::-1], "the attention gates wrong"),
        (cbam, "gated", leaky, "the attention gates, a gradient wrong"),
    ],
)
def test_a_wrong_result_or_gradient_of_the_models_parts_is_named(module, name, wrong, said, monkeypatch):
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(GuardError, match=said):
        canary.check()


mhsa_offsets, cbam_summary = mhsa._offsets, cbam.summarise_channels
defective = pytest.mark.skipif(version("jaxlib") != "0.10.2", reason="jaxlib 0.10.2 has the defect that is to be found")


@defective
@pytest.mark.slow
def test_a_run_with_the_defect_left_on_ends_with_status_3_and_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("RCMNET_KEEP_XLA_DEFECT", "1")
    status, _, err = launch(tmp_path / "run")
    assert status == 3, err
    assert "error: The compiler of this machine gets a sum of squares wrong" in err
    assert "Unset RCMNET_KEEP_XLA_DEFECT" in err
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "pretrain").exists()


@defective
@pytest.mark.slow
def test_predictions_are_refused_with_the_defect_left_on(tmp_path, monkeypatch):
    monkeypatch.setenv("RCMNET_KEEP_XLA_DEFECT", "1")
    bundle, table = ROOT / "tests/bundles/format_1/bundle", tmp_path / "p.csv"
    status, _, err = run("-m", "rcmnet_jax", "predict", bundle, "synthetic:cart-tiny", "--output", table)
    assert status == 3, err
    assert not table.exists()
