"""Builders for TensorFlow Datasets: `tfds:pbc` and `tfds:bloodmnist`. They need no TensorFlow."""
