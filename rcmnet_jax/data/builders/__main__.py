"""`python -m rcmnet_jax.data.builders NAME[/CONFIG]`: downloads and prepares a set for `tfds:NAME`."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from pathlib import Path

from rcmnet_jax.cli import guarded
from rcmnet_jax.data.formats.base import UnreadableError
from rcmnet_jax.errors import UserError

NAMES = ("pbc", "bloodmnist")


def main(arguments: list[str] | None = None) -> int:
    """Prepares the set named on the command line as ArrayRecord; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m rcmnet_jax.data.builders", description=__doc__)
    parser.add_argument("name", help="pbc, or bloodmnist/28, bloodmnist/64, bloodmnist/128, bloodmnist/224")
    parser.add_argument(
        "--data_dir", help="where TFDS keeps its sets; default: TFDS_DATA_DIR, else ~/tensorflow_datasets"
    )
    parser.add_argument("--from", dest="folder", help="folder that holds the published file already")
    options = parser.parse_args(arguments)
    return guarded(
        lambda: print(f"tfds:{options.name} is prepared in {prepare(options.name, options.data_dir, options.folder)}")
    )


def prepare(name: str, data_dir: str | None = None, folder: str | None = None) -> Path:
    """Downloads and prepares `name`; returns the folder of the prepared set, which is only looked up if it is there.

    Raises:
      UserError: no such set, or its file cannot be had.
    """
    own = re.split("[/:]", name)[0]
    if own not in NAMES:
        raise UserError(f"{name}: no builder of this package. Choose from {', '.join(NAMES)}.")
    if folder is not None and not Path(folder).expanduser().is_dir():
        raise UserError(f"--from={folder}: no such folder. Name the one that holds the published file.")
    import tensorflow_datasets as tfds

    importlib.import_module(f"rcmnet_jax.data.builders.{own}")
    where = data_dir or os.environ.get("TFDS_DATA_DIR") or None
    try:
        builder = tfds.builder(name, data_dir=where, file_format="array_record")
    except (ValueError, tfds.core.DatasetNotFoundError) as error:
        raise UserError(f"{name}: {' '.join(str(error).split())[:200]}") from error
    own_folder = {"manual_dir": str(Path(folder).expanduser().resolve())} if folder else {}
    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(**own_folder))
    except UnreadableError as error:
        raise UserError(f"{name}: {error} in the published file. Take the file away to have it downloaded.") from error
    return Path(builder.data_dir)


if __name__ == "__main__":
    sys.exit(main())
