"""torchvision's ImageNet weights: fetched once, and checked against the hash that their names carry."""

from __future__ import annotations

from pathlib import Path

from rcmnet_jax.config import ModelConfig, model_parts
from rcmnet_jax.console import Console
from rcmnet_jax.download import Remote, UnreachableError, download
from rcmnet_jax.errors import UserError
from rcmnet_jax.runtime import cache_root

WORD = "imagenet"  # what stands for these weights where a path is asked for
BASE = "https://download.pytorch.org/models"
# IMAGENET1K_V1 of each body: one recipe for all, and what published comparisons start from. A name ends with the first
# digits of the file's SHA-256.
FILES = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
}
WIDTH = 64  # channels of their stem
_MOST = 1 << 27  # bytes; the largest has 98 MiB


def file_of(config: ModelConfig) -> str:
    """Name of the published file for a model's body.

    Raises:
      UserError: there is none for it.
    """
    body = model_parts(config.name)[0]
    if body not in FILES:
        raise UserError(
            f"{WORD}: torchvision has no such weights for model {config.name}, only for models of the bodies "
            f"{', '.join(FILES)}. Name a file of weights instead."
        )
    if config.width != WIDTH:
        raise UserError(
            f"{WORD}: the published weights have width {WIDTH}, model.width is {config.width}. Set it to that."
        )
    return FILES[body]


def fetch(config: ModelConfig, console: Console | None = None) -> Path:
    """The file for a model's body in the user's cache folder, downloaded if it is not there; checked either way.

    Raises:
      UserError: no weights for this model, no connection, or a file that is not the published one.
    """
    name = file_of(config)
    url, path = f"{BASE}/{name}", cache_root() / "downloads" / name
    if console is not None and not path.exists():
        console.say(f"fetching {url}")
    digits = Path(name).stem.rsplit("-", 1)[1]
    try:
        return download(Remote(url, _MOST, f"sha256:{digits}"), path, attempts=3)
    except UnreachableError as error:
        raise UserError(
            f"{url} cannot be reached ({error.reason}): download it elsewhere and give the file's path instead of "
            f"'{WORD}', or run again to go on."
        ) from error
