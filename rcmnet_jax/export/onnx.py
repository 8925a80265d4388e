"""A bundle as an ONNX graph, traced from its PyTorch module."""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np

from rcmnet_jax.bundle import Bundle
from rcmnet_jax.export.pytorch import module_of, need

OPSET = 18


def write(bundle: Bundle, folder: Path, images: np.ndarray) -> np.ndarray | None:
    """Writes model.onnx, any number of images; answers the images where onnxruntime is installed.

    Raises:
      UserError: a package is missing.
    """
    need("torch", "onnx", "onnxscript", what="Exporting to ONNX")
    import torch

    path = folder / "model.onnx"
    # PyTorch takes a single example image for a fixed batch of one, and then refuses the batch to be free.
    traced = np.resize(images, (max(2, len(images)), *images.shape[1:]))
    # The exporter speaks of its own progress and of PyTorch's deprecations, which no user can act on.
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module_of(bundle),
            (torch.from_numpy(traced),),
            input_names=["images"],
            output_names=["probabilities"],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
        )
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # stack traces with this machine's paths, as large as a small network
        program.save(str(path), external_data=False)
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    return _answers(path, images)


def _answers(path: Path, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["probabilities"], {"images": images})[0])
