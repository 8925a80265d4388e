"""Training RCMNet (ResNet-18 + CBAM + self-attention) to tell blood cells apart, in JAX. Research use only."""

from rcmnet_jax import runtime as runtime

__version__ = "0.1.0"

runtime.prepare()
