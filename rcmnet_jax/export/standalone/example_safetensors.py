"""Probabilities of images: python example.py [IMAGE ...]; without one, those of check.npz. Needs rcmnet_jax."""

import json
import sys
from pathlib import Path

import numpy as np
from preprocessing import prepare

from rcmnet_jax.export.weights import answers

here = Path(__file__).parent
facts = json.loads((here / "preprocessing.json").read_text(encoding="utf-8"))
check, paths = np.load(here / "check.npz"), sys.argv[1:]
images = np.stack([prepare(path, facts["image"]) for path in paths]) if paths else check["images"]

probabilities = answers(here, images)

for path, row in zip(paths or ["check.npz"] * len(images), probabilities, strict=True):
    print(path, facts["classes"][row.argmax()], *(f"{p:.6f}" for p in row))
if not paths:
    print(f"largest difference to the bundle: {np.abs(probabilities - check['probabilities']).max():.1e}")
