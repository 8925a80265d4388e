"""`tfds:bloodmnist/SIZE`: PBC in 28, 64, 128 or 224 pixels with the split of MedMNIST v2 (Yang et al. 2023)."""

from rcmnet_jax.data.builders.bloodmnist.bloodmnist_dataset_builder import Builder as Builder
