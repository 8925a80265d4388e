"""Bundles in the forms that other programs run: StableHLO, ONNX, PyTorch, plain weights."""
