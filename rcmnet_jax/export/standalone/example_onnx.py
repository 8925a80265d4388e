"""Probabilities of images: python example.py [IMAGE ...]; without one, those of check.npz.

Needs onnxruntime, numpy and pillow.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from preprocessing import prepare

here = Path(__file__).parent
facts = json.loads((here / "preprocessing.json").read_text(encoding="utf-8"))
check, paths = np.load(here / "check.npz"), sys.argv[1:]
images = np.stack([prepare(path, facts["image"]) for path in paths]) if paths else check["images"]

session = onnxruntime.InferenceSession(here / "model.onnx", providers=["CPUExecutionProvider"])
(probabilities,) = session.run(["probabilities"], {"images": images})

for path, row in zip(paths or ["check.npz"] * len(images), probabilities, strict=True):
    print(path, facts["classes"][row.argmax()], *(f"{p:.6f}" for p in row))
if not paths:
    difference = np.abs(probabilities - check["probabilities"]).max()
    print(f"largest difference to the bundle: {difference:.1e}")
