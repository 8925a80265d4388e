"""Do the heat maps of `predict --explain` show what the network looks at? Two checks, one table each, and a figure.

    python -m benchmarks.explanations BUNDLE DATA --splits FILE.csv --images 200 --output docs/images/explanations.png

1. Deletion and insertion (Petsiuk et al. 2018): the area under the probability of the predicted class while the pixels
   that a map ranks highest are replaced by the mean colour (low is good), or put back into a blurred image (high
   is good). Beside the maps stand a random order and one from the centre outwards, which knows nothing of the network.
2. Weight randomisation (Adebayo et al. 2018): Spearman's rank correlation of the maps of the trained network with those
   of one whose layers start anew, from the head downwards. A map that does not change shows the image, not the network.

The figure's curves are of DATA; the overlays, in a second file, are of synthetic cells, which may be published.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy import ndimage, stats

from rcmnet_jax import bundle as bundles
from rcmnet_jax import runtime
from rcmnet_jax.bundle import Bundle
from rcmnet_jax.data.prepare import prepare
from rcmnet_jax.evaluation import explain
from rcmnet_jax.evaluation.overlay import blend
from rcmnet_jax.training.sharding import Placement

STEPS = 16  # points of a curve, besides its start
BLUR = 5 / 224  # Gaussian's deviation, of the image's side, as Petsiuk et al. have it
DEPTHS = ("head", "stage 4", "stage 3", "stage 2", "stage 1", "stem")


def pictures(spec: str, splits: str, bundle: Bundle, count: int, seed: int) -> np.ndarray:
    """Prepared images drawn at random from the validation part, else from all: (N, S, S, 3) uint8."""
    data = prepare(spec, bundle.rule, splits=splits)
    rows = np.flatnonzero(data.examples.split == "val")
    rows = rows if len(rows) else np.arange(len(data.examples.path))
    return data.images(np.sort(np.random.default_rng(seed).permutation(rows)[:count]))


def maps_of(bundle: Bundle, images: np.ndarray, classes: np.ndarray) -> dict[str, np.ndarray]:
    """Every map that can be made, at the image's size, (N, S, S)."""
    network, size = bundle.network, bundle.rule.size
    found = {}
    for layer in network.layers:
        for method in explain.METHODS:
            raw = explain.heat(network, bundle.params, bundle.batch_stats, images, classes, layer=layer, method=method)
            found[f"{method} {layer}"] = explain.enlarge(raw, size)
    if network.attends:
        raw = explain.attention(network, bundle.params, bundle.batch_stats, images)
        found["attention"] = explain.enlarge(raw, size)
    return found


def blind(count: int, size: int, seed: int) -> dict[str, np.ndarray]:
    """Maps that know nothing of the network: noise, smoothed noise on the grid of 8 x 8, and the centre."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return {
        "random pixels": rng.random((count, size, size), np.float32),
        "random 8x8": explain.enlarge(rng.random((count, 8, 8), np.float32), size),
        "centre": np.repeat(np.exp(-(x**2 + y**2) / (size / 2) ** 2)[None], count, 0).astype(np.float32),
    }


def curves(bundle: Bundle, images: np.ndarray, classes: np.ndarray, maps: np.ndarray) -> dict[str, np.ndarray]:
    """Mean probability of the class along deletion and insertion, (STEPS + 1,) each, and each image's area, (N,)."""
    n, size = len(images), images.shape[1]
    # Ties, as in a map's zeros, are broken at random: a fixed order would favour some corner.
    noise = np.random.default_rng(1).random(maps.shape) * 1e-6
    order = np.argsort(-(maps + noise).reshape(n, -1), axis=1)
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(size * size)[None], axis=1)
    rank = rank.reshape(n, size, size)
    mean = np.broadcast_to(images.mean((1, 2), keepdims=True), images.shape).astype(np.uint8)
    blurred = ndimage.gaussian_filter(images.astype(np.float32), (0, BLUR * size, BLUR * size, 0)).astype(np.uint8)
    placement, found = Placement.everywhere(), {}
    for name, start, end in (("deletion", images, mean), ("insertion", blurred, images)):
        along = []
        for step in range(STEPS + 1):
            taken = (rank < round(step / STEPS * size * size))[..., None]
            p = bundle.answers(np.where(taken, end, start), placement).probabilities
            along.append(p[np.arange(n), classes])
        values = np.array(along)  # (STEPS + 1, N)
        found[name] = values.mean(1)
        found[f"{name} area"] = np.trapezoid(values, dx=1 / STEPS, axis=0)
    return found


def randomised(bundle: Bundle, depth: int, seed: int) -> Bundle:
    """The bundle with all layers down to `depth` as at a start from random weights."""
    fresh = bundle.network.init(seed)

    def mixed(trained: Any, start: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, old, new: new if bundle.network.depth(tuple(p.key for p in path)) <= depth else old,
            trained, start,
        )  # fmt: skip

    return dataclasses.replace(
        bundle, params=mixed(bundle.params, fresh[0]), batch_stats=mixed(bundle.batch_stats, fresh[1])
    )


def correlations(bundle: Bundle, images: np.ndarray, classes: np.ndarray, draws: int) -> dict[str, list[float]]:
    """Mean Spearman correlation of each map with that of the network randomised ever deeper, over images and draws."""
    trained = maps_of(bundle, images, classes)
    found: dict[str, list[float]] = {name: [] for name in trained}
    for depth in range(len(DEPTHS)):
        values: dict[str, list[float]] = {name: [] for name in trained}
        for seed in range(draws):
            other = maps_of(randomised(bundle, depth, seed), images, classes)
            for name in trained:
                values[name] += [rank_correlation(a, b) for a, b in zip(trained[name], other[name], strict=True)]
        for name in trained:
            found[name].append(float(np.mean(values[name])))
    for name, own in trained.items():  # the floor: what two images' maps have in common, such as the centre
        found[name].append(
            float(np.mean([rank_correlation(a, b) for a, b in zip(own, np.roll(own, 1, 0), strict=True)]))
        )
    return found


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's, 0 where a map is flat."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(stats.spearmanr(first.ravel(), second.ravel()).statistic)


def figure(path: Path, bundle: Bundle, drawn: dict[str, Any], fallen: dict[str, list[float]], count: int) -> None:
    """The curves of the maps that matter, the randomisation, and overlays of synthetic cells."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    layer, method = explain.choice(bundle.network)
    chosen, shown = f"{method} {layer}", [f"{method} {layer}", f"gradcam {bundle.network.layers[-1]}"]
    shown += ["attention"] * bundle.network.attends
    compared = [*shown, f"layercam {layer}"]
    page, axes = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    share = np.linspace(0, 100, STEPS + 1)
    colours, styles = (
        ("#0072b2", "#d55e00", "#009e73", "#a8458a", "#5a5f66", "#b07d00"),
        ("-", "--", "-.", (0, (6, 1, 1, 1, 1, 1)), ":", (0, (1, 3))),
    )
    for k, name in enumerate([*compared, "random 8x8", "centre"]):
        for ax, kind in zip(axes, ("deletion", "insertion"), strict=False):
            ax.plot(share, drawn[name][kind], color=colours[k], linestyle=styles[k], label=name)
            ax.set(title=f"{kind.capitalize()}, {count} real images", xlabel="pixels changed, %", ylim=(0, 1))
    axes[0].set_ylabel("probability of the predicted class")
    axes[0].legend()
    for k, name in enumerate(compared):
        axes[2].plot([*DEPTHS, "another\nimage"], fallen[name], "o", linestyle=styles[k], color=colours[k], label=name)
    axes[2].set(title="Randomised from the head down to ...", ylabel="rank correlation with the trained map")
    axes[2].axhline(0, color="#bbb", linewidth=0.8)
    axes[2].tick_params(axis="x", rotation=30)
    axes[2].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    page.savefig(path, dpi=80)
    examples(bundle, chosen, shown, path.with_name(f"{path.stem}_cells.png"))


def examples(bundle: Bundle, chosen: str, shown: list[str], path: Path) -> None:
    """Synthetic cells under each map, and under the chosen one of the network with a head, and all, started anew."""
    from PIL import Image, ImageDraw, ImageFont

    data, tile = prepare("synthetic:pbc", bundle.rule), 112
    rows = np.array([np.flatnonzero(data.examples.label == k)[3] for k in range(0, len(data.classes), 2)])
    images = data.images(rows)
    classes = bundle.answers(images, Placement.everywhere()).probabilities.argmax(1)
    columns = {"input": images}
    for name, part in [(name, bundle) for name in shown] + [("head anew", randomised(bundle, 0, 0)),
                                                            ("all anew", randomised(bundle, 9, 0))]:  # fmt: skip
        maps = maps_of(part, images, classes)[name if name in shown else chosen]
        columns[name] = np.stack([blend(image, heat) for image, heat in zip(images, maps, strict=True)])
    sheet = Image.new("RGB", (len(columns) * (tile + 4), 20 + len(rows) * (tile + 4)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for k, (name, column) in enumerate(columns.items()):
        pen.text((k * (tile + 4) + 2, 2), name, "black", font)
        for row, picture in enumerate(column):
            shown_at = (k * (tile + 4), 20 + row * (tile + 4))
            sheet.paste(Image.fromarray(picture).resize((tile, tile), Image.Resampling.BICUBIC), shown_at)
    sheet.save(path, optimize=True)


def main() -> None:
    """Prints both tables and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--splits", default="", metavar="FILE.csv")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--draws", type=int, default=1, help="randomisations of each depth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, metavar="FILE.png", help="the figure; FILE_cells.png beside it")
    parser.add_argument("--numbers", type=Path, metavar="FILE.json", help="what the figure is drawn from")
    args = parser.parse_args()
    runtime.enable_compilation_cache()
    bundle = bundles.load(args.bundle)
    images = pictures(args.data, args.splits, bundle, args.images, args.seed)
    p = bundle.answers(images, Placement.everywhere()).probabilities
    classes = p.argmax(1)
    print(f"{bundle.network.config.name}, {bundle.rule.size} px, {len(images)} images of {args.data}, "
          f"mean p of the predicted class {p.max(1).mean():.3f}\n")  # fmt: skip
    every = {**maps_of(bundle, images, classes), **blind(len(images), bundle.rule.size, args.seed)}
    drawn = {}
    print("| map | deletion | insertion | insertion - deletion |\n|---|---|---|---|")
    for name, maps in every.items():
        drawn[name] = found = curves(bundle, images, classes, maps)
        gap = found["insertion area"] - found["deletion area"]
        error = 1.96 * gap.std(ddof=1) / len(gap) ** 0.5
        print(f"| {name} | {found['deletion area'].mean():.3f} | {found['insertion area'].mean():.3f} "
              f"| {gap.mean():.3f} ± {error:.3f} |", flush=True)  # fmt: skip
    print(f"\n| map | {' | '.join(DEPTHS)} | another image |\n|{'---|' * (len(DEPTHS) + 2)}")
    fallen = correlations(bundle, images, classes, args.draws)
    for name, values in fallen.items():
        print(f"| {name} | {' | '.join(f'{v:.2f}' for v in values)} |")
    if args.numbers:
        args.numbers.write_text(json.dumps({"curves": drawn, "randomised": fallen}, default=np.ndarray.tolist))
    if args.output:
        figure(args.output, bundle, drawn, fallen, len(images))


if __name__ == "__main__":
    main()
