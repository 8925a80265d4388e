"""`python -m rcmnet_jax COMMAND`: what one does with data and bundles outside a training run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from rcmnet_jax import __version__, runtime
from rcmnet_jax.cli import guarded
from rcmnet_jax.errors import UserError


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one sentence."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"Command line: {message}. See `{self.prog} --help`.")


def parser() -> argparse.ArgumentParser:
    """The command line of all commands."""
    top = _Parser(prog="python -m rcmnet_jax", description="Blood-cell images with RCMNet. Research use only.")
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, run: Callable[[argparse.Namespace], None], summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary)
        added.set_defaults(run=run)
        return added

    audit = command("audit", _audit, "Look for duplicates, leaks, broken images and shortcuts.")
    audit.add_argument("data", nargs="+", metavar="DATA", help="folder, CSV, zip, npz, tfds:NAME or synthetic:NAME")
    audit.add_argument("--output", type=Path, metavar="DIR", help="where audit.json and audit.html go")
    audit.add_argument("--strict", action="store_true", help="exit with status 2 on a finding of level error")

    predict = command("predict", _predict, "Apply a bundle to images and write a predictions table.")
    predict.add_argument("bundle", type=Path, metavar="BUNDLE")
    predict.add_argument("data", metavar="DATA", help="as for audit; also one image, or an unlabelled folder")
    predict.add_argument("--output", type=Path, required=True, metavar="FILE.csv")
    predict.add_argument("--explain", type=Path, metavar="DIR", help="a new folder for pictures of what was looked at")
    predict.add_argument(
        "--adapt",
        action="store_true",
        help="bring images of another laboratory to the training images' scale and colours first, and let them "
        "speak for one another (no labels used)",
    )
    predict.add_argument(
        "--adapt-parts", metavar="A,B", default="", help="some of scale,colour,norm,neighbours, for study; all without"
    )

    predict.add_argument(
        "--classes", metavar="A,B,...", help="all classes that the images can be of, where you know them"
    )

    evaluate = command("evaluate", _evaluate, "Metrics with intervals, and a report, from predictions tables.")
    evaluate.add_argument("tables", nargs="+", type=Path, metavar="TABLE.csv")
    evaluate.add_argument("--output", type=Path, required=True, metavar="DIR")
    evaluate.add_argument("--images", metavar="DATA", help="the images themselves, for the report's examples")

    export = command("export", _export, "Write a bundle in a form that other programs run, with a runnable example.")
    export.add_argument("bundle", type=Path, metavar="BUNDLE")
    export.add_argument("--to", required=True, choices=("stablehlo", "onnx", "safetensors", "torch"))
    export.add_argument("--output", type=Path, required=True, metavar="FOLDER")

    convert = command("convert", _convert, "Make a bundle of ResNet or ViT weights in torchvision's or timm's layout.")
    convert.add_argument(
        "weights", type=Path, metavar="WEIGHTS", help=".safetensors, a state dict as .pth (read safely), or imagenet"
    )
    convert.add_argument("bundle", type=Path, metavar="BUNDLE", help="the new folder")
    convert.add_argument("--model", required=True, metavar="NAME", help="one of `models`")
    convert.add_argument("--classes", metavar="A,B,...", help="names; as many as the file's head has, and it is kept")
    convert.add_argument(
        "--size", type=int, metavar="PIXELS", help="side of the images (default: an export's, else 224)"
    )
    convert.add_argument("--allow-missing", action="store_true", help="leave what the file lacks as initialised")
    convert.add_argument("--verify", metavar="DATA", help="compare with plain PyTorch on these images")

    models = command("models", _models, "List the models with parameters and GFLOPs.")
    models.add_argument("--size", type=int, default=224, metavar="PIXELS")
    models.add_argument("--classes", type=int, default=8, metavar="K")
    return top


def _predict(arguments: argparse.Namespace) -> None:
    from rcmnet_jax.evaluation.adapt import ADAPT_STEPS, parse_adapt_parts
    from rcmnet_jax.evaluation.predict_command import predict

    if arguments.adapt_parts and not arguments.adapt:
        raise UserError("Command line: --adapt-parts is for use with --adapt. Add it.")
    parts = parse_adapt_parts(arguments.adapt_parts) if arguments.adapt_parts else ADAPT_STEPS
    adapt = parts if arguments.adapt else ()
    classes = _names(arguments.classes) or ()
    predict(arguments.bundle, arguments.data, arguments.output, adapt=adapt, explain=arguments.explain, classes=classes)


def _names(listed: str | None) -> tuple[str, ...] | None:
    return None if listed is None else tuple(name.strip() for name in listed.split(","))


def _evaluate(arguments: argparse.Namespace) -> None:
    from rcmnet_jax.console import Console
    from rcmnet_jax.evaluation.metrics import summary_rows
    from rcmnet_jax.report import evaluate_tables

    console, metrics = Console(), evaluate_tables(arguments.tables, arguments.output, arguments.images)
    groups = f" of {metrics['groups']} groups" if metrics["groups"] else ""
    title = f"{arguments.tables[0]}: {metrics['n']} images{groups}"
    console.table(title, ["metric", "value", "95% interval"], summary_rows(metrics))
    if comparison := metrics.get("comparison"):
        for line in filter(None, (*comparison["sentences"], comparison["shared_errors"]["sentence"])):
            console.say(line)
    console.say(f"Report: {arguments.output / 'report.html'}")


def _audit(arguments: argparse.Namespace) -> None:
    from rcmnet_jax.data.audit.command import audit

    audit(arguments.data, arguments.output, strict=arguments.strict)


def _export(arguments: argparse.Namespace) -> None:
    from rcmnet_jax.export.command import export

    export(arguments.bundle, arguments.to, arguments.output)


def _convert(arguments: argparse.Namespace) -> None:
    from rcmnet_jax.convert import convert

    names = _names(arguments.classes)
    convert(
        arguments.weights,
        arguments.bundle,
        arguments.model,
        classes=names,
        size=arguments.size,
        allow_missing=arguments.allow_missing,
        verify=arguments.verify,
    )


def _models(arguments: argparse.Namespace) -> None:
    from rcmnet_jax.console import Console
    from rcmnet_jax.models import table

    if arguments.size < 32 or arguments.classes < 2:
        raise UserError("Command line: --size must be at least 32 pixels and --classes at least 2.")
    rows = [
        [str(row["name"]), f"{row['parameters']:,}", f"{row['gflops']:.2f}"]
        for row in table(arguments.size, arguments.classes)
    ]
    title = f"At {arguments.size} px, {arguments.classes} classes; GFLOPs of one image forward (2 per multiply-add)"
    Console().table(title, ["model", "parameters", "GFLOPs"], rows)


def main() -> None:
    """Parses the command line and runs the command."""
    arguments = parser().parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    runtime.use_huge_pages()
    sys.exit(guarded(main))
