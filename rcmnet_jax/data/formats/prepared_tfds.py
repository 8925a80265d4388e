"""`tfds:NAME[/CONFIG][:VERSION]`: a set that TensorFlow Datasets has prepared as ArrayRecord; needs no TensorFlow."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from rcmnet_jax.data.formats.base import SPLITS, Item, Source, UnreadableError, stamp_of
from rcmnet_jax.errors import UserError

_CHUNK = 256  # records read at once
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
            return _bytes(_features(self._records[split][number]), "image")
        except (RuntimeError, OSError, ValueError, DecodeError) as error:
            raise UnreadableError(f"damaged record ({' '.join(str(error).split())[:100]})") from error

    def stamp(self) -> str | None:
        try:
            found = [(path.name, path.stat()) for path in sorted(self._folder.iterdir())]
        except OSError:
            return None
        return stamp_of(found, time.time())


def open_tfds(spec: str, name: str, *, labelled: bool) -> Source:
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
    names, groups = (getattr(features[key], "names", None) if key in features else None for key in ("label", "group"))
    records, items = {}, {}
    try:
        for split in sorted(builder.info.splits):
            # TFDS's own decoding takes twenty times as long as the protocol buffer alone.
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            records[split] = builder.as_data_source(split, deserialize_method=raw, file_format="array_record")
            word = SPLITS.get(split, split) if len(builder.info.splits) > 1 else ""
            for number, found in enumerate(_all_features(records[split])):
                path = _text(found, "path") or f"{split}/{number:07d}"
                items[Item(path, _label(found, names), _text(found, "group", groups), word)] = split, number
    except UserError as error:
        raise UserError(f"{spec}: {error}") from error
    except (RuntimeError, OSError, ValueError, DecodeError) as error:
        raise UserError(
            f"{spec}: damaged ({' '.join(str(error).split())[:200]}). Delete it and prepare it again."
        ) from error
    if len({item.path for item in items}) != sum(len(r) for r in records.values()):
        raise UserError(f"{spec}: two records have the same path. Prepare it again with paths of their own.")
    if labelled and names is None and all(item.label is None for item in items):
        raise UserError(f"{spec}: has no feature 'label', so there is nothing to learn. Choose a labelled set.")
    return TfdsSource(spec, Path(builder.data_dir), records, items)


def _all_features(records: Any) -> Iterator[Any]:
    for start in range(0, len(records), _CHUNK):
        yield from map(_features, records.__getitems__(list(range(start, min(start + _CHUNK, len(records))))))


def _features(record: bytes) -> Any:
    """The features of a record, a tf.train.Example."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature


def _bytes(features: Any, name: str) -> bytes:
    if name not in features or len(features[name].bytes_list.value) != 1:
        raise ValueError(f"no single '{name}'")
    return bytes(features[name].bytes_list.value[0])


def _text(features: Any, name: str, names: list[str] | None = None) -> str:
    """A feature's text; of a number the name that it stands for, or its digits; '' for TFDS's -1 (not known)."""
    if name not in features:
        return ""
    if len(values := features[name].int64_list.value) == 1:
        return "" if values[0] < 0 else names[int(values[0])] if names else str(values[0])
    return _bytes(features, name).decode("utf-8", "backslashreplace")


def _label(features: Any, names: list[str] | None) -> str | None:
    """The class's name, the number or text itself where there are none, None for TFDS's -1 (not known)."""
    if "label" not in features:
        return None
    if values := features["label"].int64_list.value:
        if len(values) > 1:
            raise UserError(
                f"an image has {len(values)} labels, where one class an image is learnt. Choose another set."
            )
        number = int(values[0])
        return None if number < 0 else names[number] if names else str(number)
    return _text(features, "label") or None


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Nothing below an error is logged: TFDS warns of a missing folder, which is said here in one sentence."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


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
        with _without_warnings():
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
