"""Writes the golden files of the resolved configs anew: `python -m tests.golden.update`. Review the difference."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from rcmnet_jax.settings import from_dict, to_dict
from tests.test_config import PRESETS

for name, preset in PRESETS:
    config = from_dict(importlib.import_module(f"configs.{name}").get_config(preset).to_dict())
    path = Path(__file__).parent / f"{name}{'-' if preset else ''}{preset}.json"
    path.write_text(json.dumps(to_dict(config), indent=2) + "\n")
