"""Opens DATA of any form: class folder, CSV, zip, npz, tfds:NAME, synthetic:NAME, and for prediction one image."""

from __future__ import annotations

import difflib
import os
from dataclasses import replace
from pathlib import Path

from rcmnet_jax.data.formats.archive import open_zip
from rcmnet_jax.data.formats.base import (
    Item,
    Skipped,
    Source,
    UnreadableError,
    is_image_name,
    refuse_clashes,
    refuse_group_clashes,
)
from rcmnet_jax.data.formats.folder import open_folder, open_image
from rcmnet_jax.data.formats.manifest import open_manifest, read_rows, split_name, without_repeats
from rcmnet_jax.errors import UserError

__all__ = ["Item", "Skipped", "Source", "UnreadableError", "open_source"]

_FORMS = "a class folder, a .csv, a .zip, an .npz, tfds:NAME or synthetic:NAME"


def open_source(spec: str, *, labelled: bool = True, splits: str = "", clashes: bool = False) -> Source:
    """The images that `spec` names, sorted by path, with what is known of each; nothing is decoded yet.

    Args:
      spec: a path, `tfds:NAME` or `synthetic:NAME`.
      labelled: every image must have a class, as training needs it. False also takes one image, folders, zips and CSVs
        without labels.
      splits: a CSV `path,split[,group]`; images that it does not name are left out and said.
      clashes: whether classes that differ only by case, space or Unicode spelling stand side by side, for the audit to
        name them; otherwise they are refused.

    Raises:
      UserError: DATA that is missing, hostile, or of doubtful meaning, or that holds no image.
    """
    source = _open(spec.strip(), labelled)
    if not clashes:
        refuse_clashes(source)
    if splits:
        _apply_splits(source, Path(splits).expanduser())
    if labelled:
        refuse_group_clashes(source)
    if not source.items:
        shown = "; ".join(f"{s.path}: {s.reason}" for s in source.skipped[:3])
        need = "with one sub-folder per class" if labelled else "in it"
        raise UserError(f"{spec}: no images {need}{f' ({shown})' if shown else ''}. Give {_FORMS}.")
    return source


def _open(spec: str, labelled: bool) -> Source:
    kind, colon, name = spec.partition(":")
    if colon and kind == "synthetic":
        from rcmnet_jax.data.formats.embedded import SyntheticSource

        return SyntheticSource(spec, name)
    if colon and kind == "tfds":
        from rcmnet_jax.data.formats.prepared_tfds import open_tfds

        return open_tfds(spec, name, labelled=labelled)
    if not spec or "\0" in spec:
        raise UserError(f"DATA is {spec!r}. Give {_FORMS}.")
    path = Path(spec).expanduser()
    try:
        if path.is_dir():
            return open_folder(spec, path, labelled=labelled)
        if not path.is_file():
            raise UserError(_missing(spec, path))
    except OSError as error:
        raise UserError(f"{spec}: cannot be read ({error.strerror}). Check the name.") from error
    ending = path.suffix.lower()
    if ending == ".csv":
        return open_manifest(spec, path, labelled=labelled)
    if ending == ".zip":
        return open_zip(spec, path, labelled=labelled)
    if ending == ".npz":
        from rcmnet_jax.data.formats.medmnist import open_npz

        return open_npz(spec, path)
    if not labelled:
        return open_image(spec, path)
    one = "One image has no class to learn from. " if is_image_name(path.name) else ""
    raise UserError(f"{spec}: not a form of DATA. {one}Give {_FORMS}.")


def _missing(spec: str, path: Path) -> str:
    if path.exists():
        return f"{spec}: neither a folder nor a plain file. Give {_FORMS}."
    near: list[str] = []
    if path.parent.is_dir() and os.access(path.parent, os.R_OK):
        near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return (
        f"{spec}: no such file or folder{f'; did you mean {path.parent / near[0]}?' if near else f'. Give {_FORMS}.'}"
    )


def _apply_splits(source: Source, file: Path) -> None:
    """Sets split and group from the user's CSV; other images are left out, rows without an image are said."""
    rows, _ = read_rows(file, need=("path", "split"))
    rows, repeats = without_repeats(rows, file)
    known = {item.path: item for item in source.items}
    left_out = {skipped.path for skipped in source.skipped}
    kept: dict[str, Item] = {}
    absent = []
    for row in rows:
        where = f"{file}, line {row.line}"
        item = known.get(row.path)
        split = split_name(row.split, where)
        if not split:
            raise UserError(f"{where}: the split is empty. Write train, val or test, or remove the line.")
        if item is None:
            if row.path not in left_out:
                absent.append(row)
            continue
        if row.label.strip() and item.label is not None and row.label.strip() != item.label:
            raise UserError(f"{where}: label '{row.label}', but in DATA '{row.path}' is '{item.label}'. Correct one.")
        kept[row.path] = replace(item, split=split, group=row.group or item.group)
    if not kept:
        example = f"'{rows[0].path}'" if rows else "nothing"
        raise UserError(
            f"{file}: names no image of {source.spec}; it has {example}, DATA has '{next(iter(known), '')}'. "
            "Write paths relative to the class folders."
        )
    source.skipped += repeats
    source.skipped += [Skipped(row.path, f"in {file.name}, but not in DATA") for row in absent]
    source.skipped += [Skipped(path, f"not in {file.name}") for path in known if path not in kept]
    source.items = [kept[path] for path in known if path in kept]
