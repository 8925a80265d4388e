"""A trained model as a folder that explains itself: written whole, checked at every load, and never unpickled."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rcmnet_jax.config import VIEWS, ModelConfig
from rcmnet_jax.data.images import ImageRule
from rcmnet_jax.errors import UserError, suggestion
from rcmnet_jax.files import verify_sums, whole_folder, write_atomic, write_json, write_safetensors
from rcmnet_jax.settings import from_dict, to_dict

if TYPE_CHECKING:
    from rcmnet_jax.evaluation.calibration import Calibrated
    from rcmnet_jax.evaluation.predict import Responses
    from rcmnet_jax.models import Network
    from rcmnet_jax.training.sharding import Placement

FORMAT = 1
DISCLAIMER = "Research use only, not a medical device."
_LARGEST_SIDE = 4096
Tree = dict[str, Any]


@dataclass(frozen=True)
class Bundle:
    """A network with its weights and all that is needed to use it as it was trained."""

    network: Network
    classes: tuple[str, ...]
    rule: ImageRule
    params: Tree
    batch_stats: Tree
    provenance: Mapping[str, Any]
    calibration: Mapping[str, Any] = field(default_factory=dict)
    views: str = "one"  # of each image, as `evaluation.predict.begin` takes them
    possible: tuple[str, ...] = ()  # all that the images at hand can be, where that is known; empty: any of the classes

    def logits(self, images: np.ndarray, placement: Placement) -> np.ndarray:
        """Logits (N, K) float32 of prepared images, uint8 (N, S, S, 3)."""
        logits: np.ndarray = self.responses(images, placement).logits
        return logits

    def responses(self, images: np.ndarray, placement: Placement) -> Responses:
        """Logits and pooled features of prepared images, uint8 (N, S, S, 3)."""
        return self._begin(images, placement)()

    def _begin(self, images: np.ndarray, placement: Placement) -> Callable[[], Responses]:
        from rcmnet_jax.evaluation.predict import begin

        if placement not in self._placed:
            self._placed[placement] = placement.put_copies((self.params, self.batch_stats))
        return begin(self.network, *self._placed[placement], images, placement, self.views)

    @functools.cached_property
    def _placed(self) -> dict[Placement, tuple[Tree, Tree]]:
        """The weights on devices: copied once, not for every batch of images."""
        return {}

    def answers(self, images: np.ndarray, placement: Placement) -> Calibrated:
        """Probabilities and flags of prepared images, uint8 (N, S, S, 3): calibrated where the bundle is."""
        return self.answers_and_features(images, placement)[0]

    def answers_and_features(self, images: np.ndarray, placement: Placement) -> tuple[Calibrated, np.ndarray]:
        """The same, and the images' pooled features (N, C)."""
        from rcmnet_jax.evaluation import calibration, ood

        wait = self._begin(images, placement)
        looks = ood.appearance(images) if "ood" in self.calibration else None  # while the devices compute
        found = wait()
        seen = None if looks is None else ood.spaces(looks, found.embedding)
        logits = self.allowed(found.logits)
        return calibration.apply(self.calibration, logits, self.classes, seen), found.embedding

    def allowed(self, logits: np.ndarray) -> np.ndarray:
        """The logits (N, K), at -inf for the classes that `possible` leaves out."""
        return np.where(np.isin(self.classes, self.possible), logits, -np.inf) if self.possible else logits

    def restricted_to(self, names: Sequence[str]) -> Bundle:
        """The bundle for images of which it is known that they are of these classes alone.

        Raises:
          UserError: a name that is none of its classes, or fewer than two.
        """
        for name in names:
            if name not in self.classes:
                raise UserError(f"--classes: '{name}' is no class of this bundle{suggestion(name, self.classes)}")
        if len(set(names)) < 2:
            raise UserError(
                f"--classes={','.join(names)}: names fewer than two classes. Give all that the set can hold."
            )
        return dataclasses.replace(self, possible=tuple(names))


def write(folder: Path, bundle: Bundle, card: str = "") -> None:
    """Writes the bundle aside and renames it: a reader sees the old one, the new one or none.

    The same bundle gives the same bytes: no dates.
    """
    facts = {
        "format_version": FORMAT,
        "architecture": {
            "model": to_dict(bundle.network.config),
            "imported": bundle.network.imported,
            "image_size": bundle.rule.size,
        },
        "classes": list(bundle.classes),
        "preprocessing": {
            **dataclasses.asdict(bundle.rule),
            "input": "RGB uint8; scaling and normalisation are inside",
            "views": bundle.views,
        },
        "provenance": dict(bundle.provenance),
        "notice": DISCLAIMER,
    }
    leaves = {**flatten(bundle.params, "params"), **flatten(bundle.batch_stats, "batch_stats")}
    with whole_folder(folder) as aside:
        write_json(aside / "bundle.json", facts)
        write_safetensors(aside / "model.safetensors", leaves)
        write_atomic(aside / "card.md", card or plain_card(bundle))
        if bundle.calibration:
            write_json(aside / "calibration.json", dict(bundle.calibration))


def plain_card(bundle: Bundle) -> str:
    """A short card for a model of which no more is known than its bundle says."""
    from rcmnet_jax.report.card import plain

    data = bundle.provenance.get("data", {})
    lines = [
        f"# {bundle.network.config.name}, {len(bundle.classes)} classes, {bundle.rule.size} px",
        "",
        f"**{DISCLAIMER}**",
        "",
        f"- Classes: {', '.join(map(plain, bundle.classes))}",
        f"- Stage: {bundle.provenance.get('stage', 'not stated')}",
        f"- Data: {plain(data.get('spec', 'not stated'))}, "
        f"{data.get('train_images', 'an unknown number of')} training images",
    ]
    if data.get("synthetic"):
        lines.append("- SYNTHETIC DATA: trained on rendered cells; says nothing about real ones.")
    return "\n".join(lines) + "\n"


def is_sound(folder: Path) -> bool:
    """Whether a bundle is there and undamaged."""
    return folder.is_dir() and not verify_sums(folder)


def load(folder: Path) -> Bundle:
    """Reads a bundle, after checking every file against SHA256SUMS.

    Raises:
      UserError: no bundle, a damaged one, one of a newer format, or one whose weights do not fit its architecture.
    """
    from rcmnet_jax.models import Network

    folder = Path(folder)
    if not (folder / "bundle.json").is_file():
        raise UserError(f"{folder}: no bundle here (bundle.json is missing). Give the folder named bundle/ of a run.")
    if faults := verify_sums(folder):
        raise UserError(f"{folder}: the bundle is damaged ({'; '.join(faults[:3])}). Take a sound copy.")
    facts = _read_json(folder / "bundle.json")
    version = facts.get("format_version")
    if version != FORMAT:
        raise UserError(
            f"{folder / 'bundle.json'}: format_version is {version!r}, this version reads {FORMAT}. Update rcmnet_jax."
        )
    try:
        architecture, classes = facts["architecture"], tuple(str(name) for name in facts["classes"])
        rule = ImageRule.from_dict(facts["preprocessing"])
        model = from_dict(architecture["model"], ModelConfig, "bundle.json: architecture.model")
        if not (2 <= len(classes) <= 10_000 and isinstance(rule.size, int) and 32 <= rule.size <= _LARGEST_SIDE):
            raise ValueError(f"{len(classes)} classes at {rule.size} px")
        if not (isinstance(rule.frame, int) and 0 <= rule.frame <= _LARGEST_SIDE):
            raise ValueError(f"preprocessing.frame is {rule.frame!r}")
        views = facts["preprocessing"].get("views", "one")  # bundles from before there was a choice say nothing
        if views not in VIEWS:
            raise ValueError(f"preprocessing.views is {views!r}, not one of {', '.join(VIEWS)}")
        network = Network(model, classes=len(classes), image_size=rule.size, imported=bool(architecture["imported"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / 'bundle.json'}: not a bundle's description ({error}). Take a sound copy."
        ) from error
    params, batch_stats = _read_weights(folder / "model.safetensors", network)
    calibration = _read_json(folder / "calibration.json") if (folder / "calibration.json").exists() else {}
    return Bundle(network, classes, rule, params, batch_stats, facts.get("provenance", {}), calibration, views)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}). Take a sound copy of the bundle.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object. Take a sound copy of the bundle.")
    return value


def _read_weights(path: Path, network: Network) -> tuple[Tree, Tree]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found = load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a safetensors file ({error}). Take a sound copy of the bundle.") from error
    params, batch_stats = network.abstract()
    wanted = {**flatten(params, "params"), **flatten(batch_stats, "batch_stats")}
    for name in sorted(wanted.keys() ^ found.keys()):
        raise UserError(f"{path}: leaf {name} is {'missing' if name in wanted else 'not part of the architecture'}.")
    for name, leaf in wanted.items():
        if found[name].shape != leaf.shape or found[name].dtype != leaf.dtype:
            raise UserError(f"{path}: leaf {name} is {found[name].shape}, the architecture needs {leaf.shape}.")
    tree = unflatten(found)
    return tree["params"], tree.get("batch_stats", {})


def flatten(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Leaves by dotted path, numpy where they are arrays."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}.{key}"))
        else:
            flat[f"{prefix}.{key}"] = np.asarray(value) if hasattr(value, "__array__") else value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`, over all prefixes."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *folders, leaf = name.split(".")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = value
    return tree
