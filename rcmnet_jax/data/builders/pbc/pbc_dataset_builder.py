"""The published archive of PBC as a TFDS set: its JPEGs byte for byte, with their path in the archive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from rcmnet_jax.data.builders import fetched
from rcmnet_jax.data.sources import open_source
from rcmnet_jax.download import Remote

CLASSES = ("basophil", "eosinophil", "erythroblast", "ig", "lymphocyte", "monocyte", "neutrophil", "platelet")
FILE = "PBC_dataset_normal_DIB.zip"
# Mendeley Data publishes no checksum beside the file: TLS and the zip's own CRC of each member vouch for it.
REMOTE = Remote(
    "https://data.mendeley.com/public-files/datasets/snkd93bnjr/files/2fc38728-2ae7-4a62-a857-032af82334c3/file_downloaded",
    4 << 30,
)
_CITATION = """@article{acevedo2020dataset,
  title = {A dataset of microscopic peripheral blood cell images for development of automatic recognition systems},
  author = {Acevedo, Andrea and Merino, Anna and Alf{\\'e}rez, Santiago and Molina, {\\'A}ngel and Bold{\\'u}, Laura and Rodellar, Jos{\\'e}},
  journal = {Data in Brief}, volume = {30}, pages = {105474}, year = {2020}, doi = {10.1016/j.dib.2020.105474}
}"""  # noqa: E501


class Builder(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]
    """One split, `train`: the authors publish none. No patients are published either, so there is no group."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"{FILE} from https://data.mendeley.com/datasets/snkd93bnjr/1 is used if it is here."

    def _info(self) -> Any:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=list(CLASSES)),
            "path": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Normal peripheral blood cells, 360 x 363 pixels, 8 classes. CC BY 4.0.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="https://data.mendeley.com/datasets/snkd93bnjr/1",
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples(fetched(REMOTE, FILE, dl_manager))}

    def _generate_examples(self, archive: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        source = open_source(str(archive))
        for item in source.items:
            yield item.path, {"image": source.read(item), "label": item.label, "path": item.path}
