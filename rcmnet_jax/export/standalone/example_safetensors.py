"""Probabilities of images: python example.py [IMAGE ...]; without one, those of check.npz. Needs rcmnet_jax."""

import json
import sys
from pathlib import Path

import numpy as np
from preprocessing import prepare
from safetensors.numpy import load_file

from rcmnet_jax.checkpoint.torch import from_torch
from rcmnet_jax.export.folder import network_of

here = Path(__file__).parent
facts, architecture = (json.loads((here / f"{name}.json").read_text()) for name in ("preprocessing", "architecture"))
check, paths = np.load(here / "check.npz"), sys.argv[1:]
images = np.stack([prepare(path, facts["image"]) for path in paths]) if paths else check["images"]

network, temperature = network_of(architecture)
logits = np.asarray(network(*from_torch(load_file(here / "model.safetensors")), images / np.float32(255))[0])
odds = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
probabilities = odds / odds.sum(1, keepdims=True)

for path, row in zip(paths or ["check.npz"] * len(images), probabilities, strict=True):
    print(path, facts["classes"][row.argmax()], *(f"{p:.6f}" for p in row))
if not paths:
    print(f"largest difference to the bundle: {np.abs(probabilities - check['probabilities']).max():.1e}")
