"""Weights to start from: a bundle of ours, a state dict in torchvision's layout, or torchvision's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rcmnet_jax.checkpoint import foreign, published
from rcmnet_jax.checkpoint.transfer import Report, transfer
from rcmnet_jax.config import model_parts
from rcmnet_jax.errors import UserError
from rcmnet_jax.files import SUMS, sha256_bytes, sha256_file
from rcmnet_jax.settings import to_dict

if TYPE_CHECKING:
    from rcmnet_jax.models import Network

Tree = dict[str, Any]
# Settings that change a model, but not its shapes, each with the part that it is of.
_FORM = {"norm": "", "cbam_placement": "cbam", "gate": "cbam", "heads": "mhsa", "position": "mhsa"}


def is_imported(path: str) -> bool:
    """Whether weights at `path` come from a model without gates, so that `gate=auto` has to start them open.

    A bundle of ours that has gates answers for itself, as does what it was exported to; no path means random weights,
    for which the paper's gates are meant.
    """
    place = Path(path)
    if path in ("", published.WORD) or not place.exists():  # an empty path would be the current folder
        return bool(path)
    if not place.is_dir():
        return foreign.is_imported(place, foreign.read_state(place))
    from rcmnet_jax import bundle

    network = bundle.load(place).network
    return network.imported or "cbam" not in model_parts(network.config.name)


def place_of(path: str) -> Path:
    """Where weights named by a path are: a bundle's folder, or a file of weights.

    Raises:
      UserError: nothing of the kind is there.
    """
    place = Path(path)
    if not (place.is_dir() or (place.suffix in foreign.SUFFIXES and place.is_file())):
        raise UserError(
            f"config.source.init_from={path}: neither a bundle folder nor a file of weights "
            f"({', '.join(foreign.SUFFIXES)}), nor '{published.WORD}'. Check the path."
        )
    return place


def fingerprint(path: str) -> str:
    """SHA-256 of the weights named by a path, with what says of which model they are; no card or calibration.

    Raises:
      UserError: nothing there, or a folder that is no bundle.
    """
    place = place_of(path)
    if not place.is_dir():
        told = foreign.described(place)
        return sha256_bytes(f"{sha256_file(place)} {sorted(told.items())}".encode()) if told else sha256_file(place)
    sums = place / SUMS
    if not sums.is_file():
        raise UserError(f"config.source.init_from={path}: is no bundle, it has no {SUMS}. Check the path.")
    own = (b"  model.safetensors", b"  bundle.json")
    return sha256_bytes(b"\n".join(line for line in sums.read_bytes().splitlines() if line.endswith(own)))


def load(path: str, network: Network, start: tuple[Tree, Tree]) -> tuple[Tree, Tree, Report]:
    """Puts the weights at `path` into a freshly initialised network; what they lack stays as initialised.

    Args:
      path: a bundle folder, or a .safetensors or .pth file with torchvision's names (conv1.weight,
        layer1.0.bn1.running_mean), or 'imagenet' for those that torchvision publishes for the model's body.
      network: the model to fill.
      start: its initial params and batch_stats.

    Returns:
      params, batch_stats, and the account of every leaf.

    Raises:
      UserError: nothing there, an unreadable file, or shapes that do not fit.
    """
    place = published.fetch(network.config) if path == published.WORD else place_of(path)
    if place.is_dir():
        from rcmnet_jax import bundle

        found = bundle.load(place)
        params, stats = found.params, found.batch_stats
        theirs = to_dict(found.network.config)
    else:
        params, stats = foreign.as_trees(place, foreign.read_state(place))
        told = foreign.described(place).get("model", {})
        has = {"", *model_parts(told.get("name", ""))}
        theirs = {name: told[name] for name, part in _FORM.items() if name in told and part in has}
    for name in _FORM:
        ours = getattr(network.config, name)
        if theirs.get(name, ours) != ours:
            raise UserError(f"{place}: its model.{name} is {theirs[name]!r}, here it is {ours!r}. Set both alike.")
    return transfer(params, stats, *start, head=network.head, position=network.is_position_table, allow_missing=True)
