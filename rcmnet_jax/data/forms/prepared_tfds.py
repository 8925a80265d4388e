"""`tfds:NAME[/CONFIG][:VERSION]`: a set that TensorFlow Datasets has prepared as ArrayRecord; needs no TensorFlow."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import time
from pathlib import Path
from typing import Any

from rcmnet_jax.data.forms.base import SPLITS, Item, Source, UnreadableError, check_labels, stamp_of
from rcmnet_jax.errors import UserError

# A plain name: TFDS would take others for community namespaces, and fetch code for them.
_NAME = re.compile(r"[a-z0-9_]+(/[A-Za-z0-9_.\-]+)?(:\d+\.\d+\.\d+)?")


class TfdsSource(Source):
    """Records of a prepared set; `read` gives the image's encoded bytes."""

    def __init__(self, spec: str, folder: Path, records: dict[str, Any], items: dict[Item, tuple[str, int]]):
        super().__init__(spec, items)
        self._folder, self._records = folder, records
        self._places = {item.path: place for item, place in items.items()}

    def read(self, item: Item) -> bytes:
        split, number = self._places[item.path]
        try:
            data = self._records[split][number]["image"]
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            raise UnreadableError(f"damaged record ({' '.join(str(error).split())[:100]})") from error
        if not isinstance(data, bytes):
            raise UnreadableError(f"record's image is {type(data).__name__}, not an encoded file")
        return data

    def stamp(self) -> str | None:
        try:
            found = [(path.name, path.stat()) for path in sorted(self._folder.iterdir())]
        except OSError:
            return None
        return stamp_of(found, time.time())


def open_tfds(spec: str, name: str) -> Source:
    """The images of all splits; `image` must be an Image feature; `label`, `path`, `group` are taken where they exist.

    Paths are the record's own `path`, else SPLIT/NUMBER. A set with one split alone has none.

    Raises:
      UserError: not installed, no such set, not prepared, or not as ArrayRecord.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{spec}: not a name of TensorFlow Datasets. Write tfds:NAME, tfds:NAME/CONFIG.")
    tfds, builder = _builder(spec, name)
    features = builder.info.features
    if "image" not in features or not isinstance(features["image"], tfds.features.Image):
        raise UserError(f"{spec}: has no feature 'image' (it has {', '.join(features)}). Choose an image set.")
    asked = [key for key in ("label", "path", "group") if key in features]
    names = getattr(features["label"], "names", None) if "label" in asked else None
    records, items = {}, {}
    for split in sorted(builder.info.splits):
        records[split] = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        word = SPLITS.get(split, split) if len(builder.info.splits) > 1 else ""
        for number in range(len(records[split])):
            found = records[split][number] if asked else {}
            label = found.get("label")
            item = Item(
                _text(found.get("path")) or f"{split}/{number:07d}",
                None if label is None else names[label] if names else _text(label),
                _text(found.get("group")),
                word,
            )
            items[item] = split, number
    if len({item.path for item in items}) != sum(len(r) for r in records.values()):
        raise UserError(f"{spec}: two records have the same path. Prepare it again with paths of their own.")
    check_labels(spec, items)
    return TfdsSource(spec, Path(builder.data_dir), records, items)


def _builder(spec: str, name: str) -> tuple[Any, Any]:
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise UserError(f"{spec}: tensorflow-datasets is not installed. Run: pip install tensorflow-datasets")
    tfds = importlib.import_module("tensorflow_datasets")
    own = re.split("[/:]", name)[0]
    if importlib.util.find_spec(f"rcmnet_jax.data.builders.{own}") is not None:
        importlib.import_module(f"rcmnet_jax.data.builders.{own}")
        how = f"Run: python -m rcmnet_jax.data.builders {name}"
    else:
        how = "Prepare it with download_and_prepare and file_format='array_record'"
    try:
        builder = tfds.builder(name, try_gcs=False, data_dir=os.environ.get("TFDS_DATA_DIR") or None)
        prepared = builder.is_prepared()
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(f"{spec}: TensorFlow Datasets knows no set of this name. Check the name.") from error
    except (ValueError, OSError, AssertionError, ImportError) as error:
        raise UserError(f"{spec}: {' '.join(str(error).split())[:200]}. {how}.") from error
    if not prepared:
        raise UserError(f"{spec}: not prepared in {builder.data_dir}. {how}.")
    formats = {form.value for form in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise UserError(f"{spec}: is there as {', '.join(sorted(formats))} only. {how}.")
    return tfds, builder


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
