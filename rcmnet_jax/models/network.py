"""The model as pure functions of plain trees: what training, checkpoints and exports deal with."""

from __future__ import annotations

import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from rcmnet_jax.config import ModelConfig
from rcmnet_jax.models.norm import BatchNorm
from rcmnet_jax.models.rcmnet import build
from rcmnet_jax.models.resnet import STAGES
from rcmnet_jax.models.vit import DEPTH

Params = dict[str, Any]
BatchStats = dict[str, Any]

# ImageNet's statistics of RGB in [0, 1]: what imported weights expect, and as good as any for the rest.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
POSITION_TABLES = ("rel_height", "rel_width", "abs_height", "abs_width", "position")


class Network:
    """A network of fixed structure, image size and classes. It holds no values: those come in and go out.

    `params` and `batch_stats` are nested dicts with string keys and float32 leaves, named as in torchvision.

    Raises:
      UserError: the configuration cannot be built.
    """

    head: tuple[str, ...] = ("fc",)  # key prefix of the classification head

    def __init__(
        self, config: ModelConfig, *, classes: int, image_size: int | tuple[int, int], imported: bool = False
    ) -> None:
        self.config, self.classes, self.imported = config, classes, imported
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else image_size
        module = build(config, classes, self.image_size, imported)
        self.layers: tuple[str, ...] = module.layers  # feature maps that can be looked at, the finest first
        self.attends: bool = module.attends  # whether the last block has self-attention
        parts: tuple[Any, Any, Any] = nnx.split(module, nnx.Param, nnx.BatchStat)  # type: ignore[assignment]
        self._graphdef, self._params, self._stats = parts

    def _key(self) -> tuple[Any, ...]:
        return self.config, self.classes, self.image_size, self.imported

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Network) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    @functools.cached_property
    def body(self) -> Network:
        """The network with no head of its own, whose pooled features are this one's: compiled once for all heads."""
        return self.like(classes=2)

    def like(self, *, classes: int = 0, image_size: tuple[int, int] | None = None) -> Network:
        """The same network for another number of classes or another image size, where given."""
        size = image_size or self.image_size
        return Network(self.config, classes=classes or self.classes, image_size=size, imported=self.imported)

    def split_head(self, params: Params) -> tuple[Params, Params]:
        """The parameters of the body, and those of the head, which `with_blank_head` and `logits_of_pooled` take."""
        name = self.head[0]
        return {key: part for key, part in params.items() if key != name}, {name: params[name]}

    def with_blank_head(self, params: Params) -> Params:
        """A whole tree from the body's part of one: the head's place is held by zeros."""
        shapes = self.abstract()[0][self.head[0]]
        return {**params, self.head[0]: {key: jnp.zeros(leaf.shape, leaf.dtype) for key, leaf in shapes.items()}}

    def logits_of_pooled(self, params: Params, pooled: ArrayLike) -> Array:
        """Logits (B, K) from what `embed` gives (B, C); of the parameters only the head's are asked for."""
        head = params[self.head[0]]
        logits: Array = jnp.asarray(pooled) @ head["kernel"] + head["bias"]
        return logits

    def abstract(self) -> tuple[Params, BatchStats]:
        """Both trees with `jax.ShapeDtypeStruct` leaves."""
        return dict(nnx.to_pure_dict(self._params)), dict(nnx.to_pure_dict(self._stats))

    def init(self, seed: int) -> tuple[Params, BatchStats]:
        """Fresh (params, batch_stats). A leaf's values depend on the seed and its path alone, on any device."""

        def fill(state: Any) -> dict[str, Any]:
            tree: dict[str, Any] = {}
            leaves: Any = nnx.to_flat_state(state)
            for path, leaf in leaves:
                key = seed << 32 | zlib.crc32("/".join(path).encode())
                values = leaf.initial.draw(leaf.shape, np.random.Generator(np.random.Philox(key=key)))
                place = tree
                for name in path[:-1]:
                    place = place.setdefault(name, {})
                place[path[-1]] = jnp.asarray(values)
            return tree

        return fill(self._params), fill(self._stats)

    def __call__(
        self,
        params: Params,
        batch_stats: BatchStats,
        images: ArrayLike,
        *,
        train: bool = False,
        dtype: DTypeLike = jnp.float32,
    ) -> tuple[Array, BatchStats]:
        """Logits (B, K) in float32, and batch_stats, updated where `train`.

        images are (B, H, W, 3) RGB in [0, 1]. The body computes in `dtype`, norms' statistics, softmax and head in
        float32 at least; float64 images are computed in float64 throughout.
        """
        module, features = self._run(params, batch_stats, images, train, dtype)
        logits = module.fc(_pool(features))
        return logits, dict(nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))) if train else batch_stats

    def features(
        self, params: Params, batch_stats: BatchStats, images: ArrayLike, *, dtype: DTypeLike = jnp.float32
    ) -> Array:
        """The last feature map in inference mode, (B, h, w, C) of `dtype`."""
        return self._run(params, batch_stats, images, False, dtype)[1]

    def embed(
        self, params: Params, batch_stats: BatchStats, images: ArrayLike, *, dtype: DTypeLike = jnp.float32
    ) -> Array:
        """The spatial mean of the features, which the head sees, (B, C) in float32."""
        return _pool(self.features(params, batch_stats, images, dtype=dtype))

    def feature_map(self, params: Params, batch_stats: BatchStats, images: ArrayLike, layer: str) -> Array:
        """The feature map of a layer in inference mode, (B, h, w, C) float32."""
        module: Any = nnx.merge(self._graphdef, params, batch_stats)
        made: Array = module.up_to(self._normalised(images, jnp.float32), layer, False)
        return made

    def logits_of_map(self, params: Params, batch_stats: BatchStats, features: Array, layer: str) -> Array:
        """Logits (B, K) from a layer's feature map: what is left of the network, in inference mode."""
        module: Any = nnx.merge(self._graphdef, params, batch_stats)
        logits: Array = module.fc(_pool(module.features_from(features, layer)))
        return logits

    def attention(self, params: Params, batch_stats: BatchStats, images: ArrayLike) -> Array:
        """Attention weights of the last block, (B, heads, N, N): rows are queries, N the positions of its map."""
        module: Any = nnx.merge(self._graphdef, params, batch_stats)
        weights: Array = module.attention(self._normalised(images, jnp.float32))
        return weights

    def _run(
        self, params: Params, batch_stats: BatchStats, images: ArrayLike, train: bool, dtype: DTypeLike
    ) -> tuple[Any, Array]:
        module: Any = nnx.merge(self._graphdef, params, batch_stats)
        return module, module.features(self._normalised(images, dtype), train)

    def _normalised(self, images: ArrayLike, dtype: DTypeLike) -> Array:
        x = jnp.asarray(images)
        if x.ndim != 4 or x.shape[1:] != (*self.image_size, 3):
            raise ValueError(f"images must be (B, {self.image_size[0]}, {self.image_size[1]}, 3), not {x.shape}")
        wide = x.dtype if x.dtype == jnp.float64 else jnp.dtype(dtype)
        return ((x - jnp.asarray(MEAN, x.dtype)) / jnp.asarray(STD, x.dtype)).astype(wide)

    def moments(
        self, params: Params, batch_stats: BatchStats, images: ArrayLike, *, dtype: DTypeLike = jnp.float32
    ) -> BatchStats:
        """The batch's own BatchNorm means and variances, shaped as batch_stats; every layer normalises by them."""
        module: Any = nnx.merge(self._graphdef, params, batch_stats)
        for _, part in nnx.iter_graph(module):
            if isinstance(part, BatchNorm):
                part.momentum = 1.0
        module.features(self._normalised(images, dtype), True)
        return dict(nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)))

    def depth(self, path: tuple[str, ...]) -> int:
        """How far below the head a leaf lies: 0 the head, 1 stage 4 to 4 stage 1, 5 the stem. For ViT, thirds of 12."""
        if path[: len(self.head)] == self.head:
            return 0
        if path[0] in STAGES:
            return len(STAGES) - STAGES.index(path[0])
        if path[0] == "blocks":
            return 4 - int(path[1]) * 4 // DEPTH
        return 1 if path[0] == "norm" else 5

    def decays(self, path: tuple[str, ...]) -> bool:
        """Whether weight decay acts on a leaf: on kernels, not on norms, biases and position tables."""
        return path[-1] == "kernel"

    @staticmethod
    def is_position_table(path: tuple[str, ...]) -> bool:
        """Whether all axes of a leaf but the last follow the feature map's size, so that another size resizes it."""
        return path[-1] in POSITION_TABLES


def _pool(features: Array) -> Array:
    return features.mean((1, 2), dtype=jnp.promote_types(features.dtype, jnp.float32))


def count(tree: dict[str, Any]) -> int:
    """Number of values in a tree of arrays or of their shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
