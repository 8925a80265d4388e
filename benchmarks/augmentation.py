"""What augmentation costs on the device: each part alone and all together, beside the training step that it feeds.

python -m benchmarks.augmentation --size 64
"""

from __future__ import annotations

import dataclasses

from benchmarks.contest import Contender, contest, options, publish
from benchmarks.step import Work, bare_step
from rcmnet_jax import runtime  # sets XLA's flags before JAX starts


def main() -> None:
    import jax
    import numpy as np

    from rcmnet_jax.config import AugmentConfig
    from rcmnet_jax.data.augment import augment, split_position

    chosen = options(__doc__, seconds=1.0).parse_args()
    full = AugmentConfig()
    none = dataclasses.replace(
        full,
        dihedral=False,
        **{field.name: 0.0 for field in dataclasses.fields(full) if isinstance(getattr(full, field.name), float)},
    )
    views = {
        "all": full,
        "flips and turns": dataclasses.replace(none, dihedral=True),
        "zoom and shift": dataclasses.replace(none, scale=full.scale, shift=full.shift),
        "brightness, contrast, saturation": dataclasses.replace(
            none, brightness=full.brightness, contrast=full.contrast, saturation=full.saturation
        ),
        "stain": dataclasses.replace(none, stain=full.stain or 0.2),
    }
    pixels = np.random.default_rng(0).integers(0, 256, (chosen.batch, chosen.size, chosen.size, 3), np.uint8)
    arguments = jax.device_put((pixels, split_position(np.arange(chosen.batch)), np.uint32(0)))

    def contender(name: str, config: AugmentConfig) -> Contender:
        compiled = jax.jit(lambda *a: augment(*a, config))

        def run(n: int) -> None:
            for _ in range(n):
                made = compiled(*arguments)
            jax.block_until_ready(made)

        return Contender(name, run, chosen.batch)

    contenders = [contender(name, config) for name, config in views.items()]
    contenders.append(bare_step(Work(size=chosen.size, batch=chosen.batch)))
    results = contest(contenders, rounds=chosen.rounds, seconds=chosen.seconds)
    step = results[-1].median
    rows = [[r.name, f"{r.median:.0f} ± {r.spread:.0f}", f"{100 * step / r.median:.1f}%"] for r in results]
    title = (
        f"augmentation, {chosen.size} px, batch {chosen.batch}: images/s, and its time as a share of the bare step's"
    )
    publish(title, ["", "images/s", "of a step"], rows, {r.name: r.rates for r in results}, chosen.output)


if __name__ == "__main__":
    runtime.use_huge_pages()  # as launch.py does; PyTorch computes under the same conditions
    runtime.set_up()
    main()
