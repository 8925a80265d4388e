"""Settings as plain values: made into the dataclasses of config.py and back, changed by name, and hashed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from rcmnet_jax.config import ExperimentConfig
from rcmnet_jax.errors import UserError, suggestion

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
Config = TypeVar("Config", bound="DataclassInstance")


def change(config: Config, **changes: Any) -> Config:
    """A frozen config with some fields replaced; a dict replaces fields of a nested one."""
    return dataclasses.replace(
        config, **{k: change(getattr(config, k), **v) if isinstance(v, dict) else v for k, v in changes.items()}
    )


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dict of a config dataclass, tuples kept."""
    return {
        f.name: to_dict(v) if dataclasses.is_dataclass(v := getattr(config, f.name)) else v
        for f in dataclasses.fields(config)
    }


@typing.overload
def from_dict(values: Mapping[str, Any]) -> ExperimentConfig: ...
@typing.overload
def from_dict(values: Mapping[str, Any], kind: type[T], where: str = "config") -> T: ...
def from_dict(values: Mapping[str, Any], kind: type[Any] = ExperimentConfig, where: str = "config") -> Any:
    """Builds the dataclass `kind` from nested values.

    Raises:
      UserError: a key that does not exist (with the nearest that does), or a value of another type.
    """
    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}
    for key in values:
        _require(str(key), known, where)
    return kind(**{key: _convert(value, hints[key], f"{where}.{key}") for key, value in values.items()})


def check_setting(name: str) -> None:
    """Checks that there is a setting of this dotted name, such as "config.source.epochs" or "config.source".

    Raises:
      UserError: there is none (with the nearest that there is).
    """
    kind: Any = ExperimentConfig
    where, *keys = name.split(".")
    for key in keys:
        if not dataclasses.is_dataclass(kind):
            raise UserError(f"{where}: is a value and no group of settings, it has no '{key}'.")
        hints = typing.get_type_hints(kind)
        _require(key, hints, where)
        kind, where = hints[key], f"{where}.{key}"


def _require(key: str, known: Collection[str], where: str) -> None:
    if key not in known:
        raise UserError(f"{where}.{key}: no such setting{suggestion(key, known)}")


def _convert(value: Any, hint: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: expected a group of settings, got {value!r}.")
        return from_dict(value, typing.cast(type, hint), where)
    if typing.get_origin(hint) is tuple:
        items = [v for v in value.replace(";", ",").split(",") if v.strip()] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise UserError(f"{where}: expected a list, got {value!r}.")
        return tuple(_convert(v.strip() if isinstance(v, str) else v, typing.get_args(hint)[0], where) for v in items)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(hint, types.UnionType) or not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {value!r} ({type(value).__name__}).")
    return value


def config_hash(config: ExperimentConfig) -> str:
    """8 hex digits of the resolved config."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:8]
