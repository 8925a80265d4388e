"""What only its maker knows of a model, asked for in one YAML file of the workdir: card.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rcmnet_jax.errors import UserError, suggestion
from rcmnet_jax.files import write_atomic
from rcmnet_jax.report.card import MARK, mark
from rcmnet_jax.report.items import ITEMS, Item

FILE = "card.yaml"
LARGEST = 1_000_000  # bytes of a file that a person wrote
# What no run can find out. Any other item may be answered as well; the answer then takes the place of what is derived.
ASKED = (
    "objectives", "design", "use", "involvement", "dates", "people", "definitions", "labels", "deidentified", "ethics",
    "size", "fairness", "external", "code", "registration", "funding",
)  # fmt: skip
_HEAD = """\
# What only you know of this model. Write each answer behind its colon (in quotes if it holds a colon or a #), then run
# the command that made this folder once more: bundle/card.md takes the answers in; nothing is trained anew.
# Any other item of the card may be answered too, in place of what the run found: {others}.
"""


def template() -> str:
    """The file as it is first written: each question as a comment above its key, and no answer."""
    wanted = [item for item in ITEMS if item.key in ASKED]
    others = ", ".join(item.key for item in ITEMS if item.key not in ASKED)
    return _HEAD.format(others=others) + "".join(f"\n# {i.question} ({i.sources})\n{i.key}:\n" for i in wanted)


def ask(workdir: Path) -> None:
    """Writes the template where there is no card.yaml; what a person has written is never touched."""
    if not (workdir / FILE).exists():
        write_atomic(workdir / FILE, template())


def read(workdir: Path) -> dict[str, str]:
    """The answers by item; a key without an answer counts as not answered. Empty where there is no file.

    Raises:
      UserError: no YAML, not one answer a key, or a key that is no item; with file and line.
    """
    import yaml

    path = workdir / FILE
    if not path.exists():
        return {}
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path}: is larger than {LARGEST:,} bytes. Keep the answers short.")
        # Nodes, not values: every answer stays the text it was written as, be it 2021-05-01, no or 1e3.
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error.reason}). Save it as UTF-8.") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "not readable"
        raise UserError(f"{where}: not YAML ({problem}). Put an answer that holds ': ' or '#' in quotes.") from error
    return _answers(path, node)


def _answers(path: Path, node: Any) -> dict[str, str]:
    import yaml

    known: dict[str, Item] = {item.key: item for item in ITEMS}
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{path}, line {node.start_mark.line + 1}: expected lines of the form 'key: answer'.")
    found: dict[str, str] = {}
    for key, value in node.value:
        where, name = f"{path}, line {key.start_mark.line + 1}", str(key.value)
        if name not in known:
            raise UserError(f"{where}: '{name}' is no item of the card{suggestion(name, known)}")
        if name in found:
            raise UserError(f"{where}: '{name}' is answered twice. Keep one.")
        if not isinstance(value, yaml.ScalarNode):
            raise UserError(f"{where}: the answer to '{name}' must be text on one key. Put it in quotes.")
        found[name] = "" if value.tag.endswith(":null") else " ".join(value.value.split())
    return {name: text for name, text in found.items() if text}


def is_current(workdir: Path) -> bool:
    """Whether the card in bundle/ was made with the answers that card.yaml has now."""
    try:
        lines = (workdir / "bundle" / "card.md").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    marks = [line for line in lines if line.startswith(MARK)]
    return marks == [line for line in (mark(read(workdir)),) if line]
