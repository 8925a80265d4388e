"""The networks: `Network` gives any of `MODELS` as pure functions of plain trees."""

from rcmnet_jax.models.network import POSITION_TABLES, BatchStats, Network, Params, count
from rcmnet_jax.models.rcmnet import MODELS
from rcmnet_jax.models.registry import table

__all__ = ["MODELS", "POSITION_TABLES", "BatchStats", "Network", "Params", "count", "table"]
