"""What a run writes about itself while it goes."""

from __future__ import annotations

import os
import struct

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
    assert values(tmp_path / "run" / "tensorboard" / "pretrain") == [("train/loss", 1, 0.5)]


def values(folder):
    """(name, step, value) of each scalar in the folder's one event file."""
    from tensorboardX.proto.event_pb2 import Event

    (file,) = folder.glob("events.*")
    data, found = file.read_bytes(), []
    while data:
        (length,) = struct.unpack("Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    return found


FILL = """
import resource, signal, sys
from pathlib import Path
from rcmnet_jax.training.records import Records
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
records = Records(Path(sys.argv[1]))
try:
    for step in range(40):  # log.jsonl stays below the limit
        records.write("pretrain", "train", step, **{f"value_{k}": 0.5 for k in range(20)})
except OSError as error:
    print(type(error).__name__, error.errno)
"""


def test_a_full_disk_is_raised_and_nothing_waits_for_a_writer_that_is_gone(tmp_path):
    status, out, _ = run("-c", FILL, tmp_path / "run")
    assert out.split() == ["OSError", "27"], status
