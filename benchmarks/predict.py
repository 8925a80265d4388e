"""Images on disk to probabilities, ours against PyTorch with the same network, decoding included, in turn.

    python -m benchmarks.predict BUNDLE DATA

Models are loaded and compiled beforehand. Ours does what `predict` does: checks, hashes, decodes, prepares,
computes, calibrates. PyTorch's side decodes with Pillow, applies the same image rule, computes with the
exported module (channels_last, eager and compiled) and takes the softmax.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.contest import Contender, contest, options, publish, ratio
from rcmnet_jax import runtime  # sets XLA's flags before JAX starts


def main() -> None:
    import numpy as np
    import torch

    from rcmnet_jax import bundle as bundles
    from rcmnet_jax.data.images import decode, standardise
    from rcmnet_jax.data.prepare import prepare
    from rcmnet_jax.data.sources import open_source
    from rcmnet_jax.evaluation import ood
    from rcmnet_jax.evaluation.predict_command import answered
    from rcmnet_jax.export.pytorch import module_of
    from rcmnet_jax.training.sharding import Placement

    words = options(__doc__, seconds=2.0, size=False)
    words.add_argument("bundle", type=Path, metavar="BUNDLE")
    words.add_argument("data", metavar="DATA")
    words.add_argument("--images", type=int, default=512, help="of DATA, as PNG or JPEG files in one folder")
    chosen = words.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    bundle, placement = bundles.load(chosen.bundle), Placement.everywhere()
    module = module_of(bundle).eval().to(memory_format=torch.channels_last)
    rows, facts = [], {}
    with tempfile.TemporaryDirectory() as name:
        source, folder = open_source(chosen.data), Path(name) / "images"
        folder.mkdir()
        for i, item in enumerate(source.items[:: max(1, len(source.items) // chosen.images)][: chosen.images]):
            (folder / f"{i:05d}{Path(item.path).suffix}").write_bytes(source.read(item))
        files = sorted(folder.iterdir())

        def ours(spec: Path, count: int) -> Contender:
            def run(n: int) -> None:
                for _ in range(n):
                    cache = Path(name) / "none"
                    ood.forget()  # of new images nothing is known
                    data = prepare(str(spec), bundle.rule, cache=cache, labelled=False, keep=False)
                    assert len(answered(bundle, data, placement)[1]) == count

            return Contender("ours", run, count)

        def theirs(name: str, called: Callable[..., object], paths: list[Path]) -> Contender:
            def run(n: int) -> None:
                for _ in range(n):
                    for start in range(0, len(paths), 64):
                        batch = [standardise(decode(p.read_bytes()), bundle.rule) for p in paths[start : start + 64]]
                        with torch.inference_mode():
                            called(torch.from_numpy(np.stack(batch)))

            return Contender(name, run, len(paths))

        for what, spec, paths in (("one image", files[0], files[:1]), (f"{len(files)} images", folder, files)):
            others = [
                theirs("PyTorch, eager", module, paths),
                theirs("PyTorch, compiled", torch.compile(module), paths),
            ]
            us, *them = contest([ours(spec, len(paths)), *others], rounds=chosen.rounds, seconds=chosen.seconds)
            best = max(them, key=lambda result: result.median)
            value, low, high = ratio(us, best)
            rates = [f"{one.median:.1f} ± {one.spread:.1f}" for one in (us, *them)]
            rows.append([what, *rates, f"{value:.2f} ({low:.2f}-{high:.2f})"])
            facts[what] = {one.name: one.rates for one in (us, *them)}
    title = f"{bundle.network.config.name}, {bundle.rule.size} px, from disk: images/s"
    publish(title, ["", "ours", "PyTorch, eager", "compiled", "ratio to best"], rows, facts, chosen.output)


if __name__ == "__main__":
    runtime.use_huge_pages()  # as launch.py does; PyTorch computes under the same conditions
    main()
