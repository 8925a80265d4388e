"""`tfds:pbc`: 17,092 images of normal peripheral blood cells in 8 classes (Acevedo et al. 2020)."""

from rcmnet_jax.data.builders.pbc.pbc_dataset_builder import Builder as Builder
