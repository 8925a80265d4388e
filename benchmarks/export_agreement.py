"""How near a bundle's exports are to it on real images: one line for each form.

    python -m benchmarks.export_agreement BUNDLE DATA [--split FILE.csv] [--part val]

Each form is exported and then run in a process of its own that has only the exported folder: not this package, none of
its flags. ONNX needs onnxruntime, PyTorch needs torch.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import numpy as np

from benchmarks.selection import options, rows_of
from rcmnet_jax import bundle as bundles
from rcmnet_jax import runtime
from rcmnet_jax.cli import guarded
from rcmnet_jax.data.prepare import prepare
from rcmnet_jax.export.command import export
from rcmnet_jax.training.sharding import Placement

HEAD = """
import sys
import numpy as np
from pathlib import Path
folder, images = Path(sys.argv[1]), np.load("images.npy")
assert "rcmnet_jax" not in sys.modules
"""
TAIL = """
parts = [answer(images[i : i + 64]) for i in range(0, len(images), 64)]
np.save("answers.npy", np.concatenate([np.asarray(part) for part in parts]))
"""
PROGRAMS = {
    "stablehlo": """
from jax import export
answer = export.deserialize(bytearray((folder / "model.stablehlo").read_bytes())).call
""",
    "onnx": """
import onnxruntime
session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
answer = lambda batch: session.run(["probabilities"], {"images": batch})[0]
""",
    "torch": """
sys.path.insert(0, str(folder))
import torch
from model import load
network = load(folder)
def answer(batch):
    with torch.inference_mode():
        return network(torch.from_numpy(batch)).numpy()
""",
}


def answers(form: str, bundle: Path, images: np.ndarray, place: Path) -> np.ndarray:
    """Probabilities (N, K) that the bundle's export in `form` gives in a process without this package."""
    export(bundle, form, place / form)
    np.save(place / "images.npy", images)
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PYTHONPATH")}
    code = HEAD + PROGRAMS[form] + TAIL
    subprocess.run([sys.executable, "-c", code, str(place / form)], env=kept, cwd=place, check=True)
    found: np.ndarray = np.load(place / "answers.npy")
    return found


def main() -> None:
    """Prints the table in Markdown."""
    given = options(__doc__).parse_args()
    runtime.enable_compilation_cache()
    bundle = bundles.load(given.bundle)
    data = prepare(given.data, bundle.rule, splits=given.split)
    images = data.images(rows_of(given.part, data.examples.split))
    wanted = bundle.answers(images, Placement.everywhere()).probabilities
    with tempfile.TemporaryDirectory() as place:
        found = {form: answers(form, given.bundle, images, Path(place)) for form in PROGRAMS}
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("jax", "torch", "onnx", "onnxruntime")
    )
    print(f"\n{len(images)} images, Python {platform.python_version()}, {versions}, {date.today()}\n")
    print("| form | largest difference of a probability | other top-1 |\n|---|---|---|")
    for form, given_back in found.items():
        other = int((given_back.argmax(1) != wanted.argmax(1)).sum())
        print(f"| {form} | {np.abs(given_back - wanted).max():.1e} | {other} of {len(images)} |")


if __name__ == "__main__":
    sys.exit(guarded(main))
