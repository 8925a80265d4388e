"""The convolutions of ResNet-18 one by one against PyTorch: what bounds a training step on the CPU.

    python -m benchmarks.convolution --size 128

For each shape the forward pass, the gradient for the images and that for the kernel, in GFLOP/s (counting the
definition's multiplications and additions, whatever a form saves), in turn in one process; then the milliseconds that
all of a step's convolutions take together. Ours is `conv`, in the form that it chooses; PyTorch's is channels_last.
`product` is what bounds ours where it saves no multiplications: XLA's matrix product of the size that the convolution
has as one, with the patches of the images already laid out (of the gradient for images, not measured).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.contest import Contender, Result, contest, options, publish, roofline
from rcmnet_jax import runtime  # sets XLA's flags before JAX starts

KINDS = ("forward", "images", "kernel")


def shapes(size: int) -> Iterator[tuple[tuple[int, int, int, int, int], int]]:
    """((side, channels in, out, kernel, stride), how often) of ResNet-18's convolutions."""
    yield (size, 3, 64, 7, 2), 1
    side, width = size // 4, 64
    yield (side, width, width, 3, 1), 4
    for _ in range(3):
        yield (side, width, 2 * width, 3, 2), 1
        yield (side, width, 2 * width, 1, 2), 1
        side, width = side // 2, 2 * width
        yield (side, width, width, 3, 1), 3


def contenders(shape: tuple[int, int, int, int, int], batch: int) -> tuple[list[Contender], float]:
    """Ours and PyTorch's for each of the kinds, and the operations of one."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch

    from rcmnet_jax.models.conv import conv

    side, inputs, outputs, kernel, stride = shape
    random, padding = np.random.default_rng(0), kernel // 2
    x = random.standard_normal((batch, side, side, inputs), np.float32)
    w = random.standard_normal((kernel, kernel, inputs, outputs), np.float32) / kernel / inputs**0.5

    def ours(x: Any, w: Any) -> Any:
        return conv(x, w, stride=stride, padding=padding)

    forward = jax.jit(ours)
    images = jax.jit(lambda x, w, dy: jax.vjp(lambda x: ours(x, w), x)[1](dy))
    weights = jax.jit(lambda x, w, dy: jax.vjp(lambda w: ours(x, w), w)[1](dy))
    jx, jw = jnp.asarray(x), jnp.asarray(w)
    dy = jnp.ones_like(forward(jx, jw))
    tx, tdy = (torch.from_numpy(np.array(a)).permute(0, 3, 1, 2) for a in (x, dy))  # a view: channels_last
    tw = torch.from_numpy(w).permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)

    def back(*mask: bool) -> Callable[[], Any]:
        rest = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, mask)
        return lambda: torch.ops.aten.convolution_backward(tdy, tx, tw, None, *rest)

    patches = jnp.asarray(random.standard_normal((dy[..., 0].size, kernel * kernel * inputs), np.float32))
    flat, rows = jw.reshape(-1, outputs), dy.reshape(-1, outputs)
    product, outer = jax.jit(jnp.matmul), jax.jit(lambda p, dy: p.T @ dy)

    calls: list[Callable[[], Any]] = [
        lambda: forward(jx, jw).block_until_ready(),
        lambda: torch.conv2d(tx, tw, None, stride, padding),
        lambda: product(patches, flat).block_until_ready(),
        lambda: jax.block_until_ready(images(jx, jw, dy)),
        back(True, False, False),
        lambda: jax.block_until_ready(weights(jx, jw, dy)),
        back(False, True, False),
        lambda: outer(patches, rows).block_until_ready(),
    ]
    if inputs == 3:
        del calls[3:5]  # nobody asks for the gradient of the pixels
    return [Contender("", _repeated(call)) for call in calls], 2.0 * dy.size * kernel * kernel * inputs


def _repeated(call: Callable[[], Any]) -> Callable[[int], None]:
    def run(n: int) -> None:
        for _ in range(n):
            call()

    return run


def main() -> None:
    import torch

    chosen = options(__doc__, seconds=0.1).parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rows, facts, total = [], [], [0.0, 0.0]
    with torch.no_grad():
        for shape, often in shapes(chosen.size):
            made, work = contenders(shape, chosen.batch)
            results: list[Result | None] = list(contest(made, rounds=chosen.rounds, seconds=chosen.seconds))
            if len(results) == 6:
                results[3:3] = [None, None]
            cells = ["-" if r is None else f"{work * r.median / 1e9:.0f}" for r in results]
            for who, places in enumerate(((0, 3, 5), (1, 4, 6))):  # ours, PyTorch's
                total[who] += sum(often * 1e3 / r.median for r in map(results.__getitem__, places) if r)
            rows.append([f"{shape[0]}, {shape[1]} to {shape[2]}, {shape[3]}x{shape[3]}/{shape[4]}", str(often), *cells])
            facts.append(
                {"shape": shape, "often": often, "operations": work, "rates": [r and r.rates for r in results]}
            )
    limits = roofline()
    forward, images, kernel = KINDS
    heads = [forward, "PyTorch", "product", images, "PyTorch", kernel, "PyTorch", "product"]
    title = f"ResNet-18's convolutions, {chosen.size} px, batch {chosen.batch}: GFLOP/s"
    publish(title, ["side, channels, kernel", "times", *heads], rows,
            {"layers": facts, "milliseconds": total, "roofline": limits}, chosen.output)  # fmt: skip
    print(f"all of a step: ours {total[0]:.0f} ms, PyTorch {total[1]:.0f} ms; products of 2048: {limits}")


if __name__ == "__main__":
    runtime.use_huge_pages()
    runtime.set_up()
    main()
