"""The command `export`: a bundle in the forms that other programs run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from rcmnet_jax import bundle as bundles
from rcmnet_jax import canary, runtime
from rcmnet_jax.bundle import Bundle
from rcmnet_jax.console import Console
from rcmnet_jax.errors import GuardError
from rcmnet_jax.export.folder import check_images, whole_folder, write_common
from rcmnet_jax.training.sharding import Placement

FORMS = ("stablehlo", "onnx", "safetensors", "torch")
TOLERANCE = 1e-4  # of probabilities: what an export may differ from its bundle by
# Writes the weights in one form into a folder, and answers images by what it wrote; None where nothing here can run it.
Writer = Callable[[Bundle, Path, np.ndarray], np.ndarray | None]


def export(folder: Path, form: str, output: Path) -> None:
    """Writes the bundle at `folder` in one of FORMS to the new folder `output`, and says how near its answers are.

    Raises:
      UserError: no sound bundle, a package that the form needs is missing, or `output` is there already.
      GuardError: what was written answers otherwise than the bundle, or this machine computes wrongly; nothing stays.
    """
    console, bundle = Console(), bundles.load(folder)
    with whole_folder(output) as aside:
        canary.check(runtime.enable_compilation_cache())
        images = check_images(bundle.rule.size)
        wanted = bundle.answers(images, Placement.everywhere()).probabilities
        write_common(aside, bundle, form, images, wanted)
        found = writer(form)(bundle, aside, images)
        if found is not None:
            _compare(found, wanted, console)
    console.say(f"{form}: {output} (python {output / 'example.py'} [IMAGE ...])")
    console.say(bundles.DISCLAIMER)


def writer(form: str) -> Writer:
    """What writes one of FORMS."""
    # Each form brings packages of its own.
    if form == "stablehlo":
        from rcmnet_jax.export import stablehlo

        return stablehlo.write
    if form == "onnx":
        from rcmnet_jax.export import onnx

        return onnx.write
    if form == "torch":
        from rcmnet_jax.export import pytorch

        return pytorch.write
    from rcmnet_jax.export import weights

    return weights.write


def _compare(found: np.ndarray, wanted: np.ndarray, console: Console) -> None:
    worst = float(np.abs(found - wanted).max())
    if not worst <= TOLERANCE:
        raise GuardError(
            f"The export's probabilities differ from the bundle's by {worst:.1e}, more than {TOLERANCE:.0e}: "
            "nothing was written. Update the packages of requirements-extra.txt and try again."
        )
    console.say(f"checked on {len(wanted)} images: probabilities within {worst:.1e} of the bundle's")
