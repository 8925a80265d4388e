"""BloodMNIST's arrays as a TFDS set of PNGs, with the published split."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from rcmnet_jax.data.builders import fetched
from rcmnet_jax.data.formats.base import Source
from rcmnet_jax.data.formats.medmnist import BLOODMNIST
from rcmnet_jax.data.sources import open_source
from rcmnet_jax.download import Remote

RECORD = "https://zenodo.org/records/10519652/files"
# Side in pixels: file, most bytes, checksum that Zenodo publishes.
FILES = {
    "28": ("bloodmnist.npz", 1 << 27, "md5:7053d0359d879ad8a5505303e11de1dc"),
    "64": ("bloodmnist_64.npz", 1 << 29, "md5:2b94928a2ae4916078ca51e05b6b800b"),
    "128": ("bloodmnist_128.npz", 1 << 31, "md5:adace1e0ed228fccda1f39692059dd4c"),
    "224": ("bloodmnist_224.npz", 1 << 32, "md5:b718ff6835fcbdb22ba9eacccd7b2601"),
}
_CITATION = """@article{medmnistv2,
  title = {MedMNIST v2 - A large-scale lightweight benchmark for 2D and 3D biomedical image classification},
  author = {Yang, Jiancheng and Shi, Rui and Wei, Donglai and Liu, Zequan and Zhao, Lin and Ke, Bilian and Pfister, Hanspeter and Ni, Bingbing},
  journal = {Scientific Data}, volume = {10}, pages = {41}, year = {2023}, doi = {10.1038/s41597-022-01721-8}
}"""  # noqa: E501
_TFDS_SPLITS = {"train": "train", "val": "validation", "test": "test"}


class Builder(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]
    """11,959 images to train on, 1,712 to validate, 3,421 to test."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=side, description=f"{side} pixels a side") for side in FILES]  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = "bloodmnist*.npz of https://zenodo.org/records/10519652 is used if it is here."

    def _info(self) -> Any:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=list(BLOODMNIST)),
            "path": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Blood cells of PBC (Acevedo et al. 2020), centre-cropped and resized. CC BY 4.0.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="https://medmnist.com",
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        file, most, checksum = FILES[self.builder_config.name]
        source = open_source(str(fetched(Remote(f"{RECORD}/{file}", most, checksum), file, dl_manager)))
        held = {item.split for item in source.items}
        return {name: self._generate_examples(source, split) for split, name in _TFDS_SPLITS.items() if split in held}

    def _generate_examples(self, source: Source, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for item in source.items:
            if item.split == split:
                packed = io.BytesIO()
                Image.open(io.BytesIO(source.read(item))).convert("RGB").save(packed, "png")
                yield item.path, {"image": packed.getvalue(), "label": item.label, "path": item.path}
