"""What a run writes about itself while it goes."""

from __future__ import annotations

import os

from tests.commands import ROOT, run

WRITE = """
import sys
from pathlib import Path
from rcmnet_jax.training.records import Records
records = Records(Path(sys.argv[1]))
records.write("pretrain", "train", 1, loss=0.5)
records.close()
try:
    import torch
except RuntimeError as error:
    print(error)
"""


def test_scalars_are_written_without_loading_pytorch_which_can_be_imported_afterwards(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text('raise RuntimeError("loaded")')
    path = os.pathsep.join(map(str, (tmp_path, ROOT)))
    status, out, err = run("-c", WRITE, tmp_path / "run", PYTHONPATH=path)
    assert status == 0, err
    assert out.split() == ["loaded"]
    assert list((tmp_path / "run" / "tensorboard" / "pretrain").glob("events.*"))
