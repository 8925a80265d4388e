"""How failures become a sentence and an exit status."""

from __future__ import annotations

import errno

import pytest

from rcmnet_jax.cli import check_words, guarded
from rcmnet_jax.errors import GuardError, Interrupted, UserError
from tests.commands import ROOT, run, start


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("cells.csv, line 3: no such file."), 2, "cells.csv, line 3"),
        (GuardError("step 4 is not finite"), 3, "step 4"),
        (Interrupted("saved"), 75, "stopped: saved"),
        (KeyboardInterrupt(), 75, "run the same command again"),
        (OSError(errno.ENOSPC, "No space left on device", "/full/x"), 75, "disk is full while writing /full/x"),
        (RuntimeError("write failed: No space left on device"), 75, "disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/locked"), 2, "/locked: Permission denied"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a.csv/b"), 2, "a.csv/b: Not a directory"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "long"), 2, "name another place"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"), 2, "Lower batch_size"),
        (MemoryError(), 2, "Lower batch_size"),
    ],
)
def test_each_kind_of_failure_has_its_status(capsys, error, status, said):
    def main():
        raise error

    assert guarded(main) == status
    assert said in capsys.readouterr().err


def test_success_is_0_and_a_defect_of_ours_is_not_hidden():
    assert guarded(lambda: None) == 0
    for defect in (RuntimeError("something else"), OSError(errno.EIO, "odd"), KeyError("x")):

        def main(defect=defect):
            raise defect

        with pytest.raises(type(defect)):
            guarded(main)


TALK = """
import sys
from pathlib import Path
from rcmnet_jax.console import Console
for k in range(1000):
    Console().say(f"line {k}")
Path(sys.argv[1]).write_text("done")
"""


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "--config is missing"),
        (["--workdir=x"], "--config is missing"),
        (["--config"], "--config is missing"),
        (["--config", "nowhere.py:real"], "nowhere.py: no such config file"),
        (["--config=configs/cart.py:real", "--config.source.epoch=3"], "did you mean 'epochs'"),
    ],
)
def test_a_config_that_is_not_there_is_said_before_it_is_read(words, sentence):
    with pytest.raises(UserError, match=sentence):
        check_words(words)


def test_a_reader_who_leaves_does_not_end_what_he_read_of(tmp_path):
    with start("-c", TALK, tmp_path / "made", PYTHONPATH=str(ROOT)) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 0
    assert (tmp_path / "made").read_text() == "done"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("predict",), "required"),
        (("predikt", "x"), "invalid choice"),
        (("predict", "/nowhere", "/nothing", "--output", "x.csv"), "/nowhere"),
        (("evaluate", "/nowhere.csv", "--output", "x"), "/nowhere.csv"),
        (("models", "--size", "8"), "--size"),
        (("audit", "/nowhere"), "/nowhere"),
    ],
)
def test_wrong_arguments_are_one_sentence_and_status_2(tmp_path, words, said):
    status, _, err = run("-m", "rcmnet_jax", *words, cwd=tmp_path)
    assert status == 2, err
    assert said in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_models_are_listed_with_their_size():
    status, out, _ = run("-m", "rcmnet_jax", "models", "--size", "224")
    assert status == 0
    assert "8,131,424" in out
    assert "vit_s16" in out


@pytest.mark.slow
def test_audit_writes_json_and_a_page(tmp_path):
    status, _, err = run("-m", "rcmnet_jax", "audit", "synthetic:cart-tiny", "--output", tmp_path / "audit", "--strict")
    assert status == 0, err
    assert {path.name for path in (tmp_path / "audit").iterdir()} >= {"audit.json", "audit.html"}
