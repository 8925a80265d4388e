"""What is to be said where a classifier that sees no cell does nearly as well as the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rcmnet_jax.evaluation.metrics import chance_level

LARGE = 0.5  # share of what a network gains over guessing that a shortcut may reach before the report warns


def shortcut_warning(network: Mapping[str, Any], shortcut: Mapping[str, Any]) -> str:
    """A sentence where the shortcut's balanced accuracy explains most of the network's, else ''.

    It does where (shortcut - chance) / (network - chance) is at least a half, or where its 95% interval reaches the
    network's, so that the data do not show the network to see more.

    Args:
      network: metrics of the network's arm, from `compute`, on the same rows as
      shortcut: those of the shortcut's.
    """
    ours, its = network["balanced_accuracy"], shortcut["balanced_accuracy"]
    if ours["value"] is None or its["value"] is None:
        return ""
    chance = chance_level(network) or 1.0
    gain, part = ours["value"] - chance, its["value"] - chance
    if part <= 0 or (part < LARGE * gain and its["high"] < ours["low"]):
        return ""
    if part >= gain:
        verdict = "so the network has shown nothing beyond the way the images came"
    elif part >= LARGE * gain:
        verdict = f"so the way the images came explains {part / gain:.0%} of what the network gains over guessing"
    else:
        verdict = "and the intervals overlap, so the data do not show the network to see more than the way they came"
    reached = f"{its['value']:.1%} balanced accuracy ({its['low']:.1%} to {its['high']:.1%})"
    told = f"{ours['value']:.1%} ({ours['low']:.1%} to {ours['high']:.1%})"
    return (
        f"Shortcut: size, border, colour and file properties alone reach {reached}, the network {told}, "
        f"guessing {chance:.1%}: {verdict}."
    )
