"""Feeding the step: batches from the device, and streamed through Grain, alone and in training, in turn.

    python -m benchmarks.loader DATA --size 64

DATA is anything that the package reads. `share` is the streamed rate as a part of the resident one: in training it is
the figure that counts, since reading then shares the cores with the step.
"""

from __future__ import annotations

from benchmarks.contest import Contender, contest, options, publish, ratio
from rcmnet_jax import runtime  # sets XLA's flags before JAX starts


def main() -> None:
    import jax
    import numpy as np

    from rcmnet_jax.config import AugmentConfig, ModelConfig, OptimizerConfig
    from rcmnet_jax.data.images import ImageRule
    from rcmnet_jax.data.loader import Loader, ResidentLoader, StreamLoader
    from rcmnet_jax.data.prepare import prepare
    from rcmnet_jax.models import Network
    from rcmnet_jax.training import state as states
    from rcmnet_jax.training.sharding import Placement
    from rcmnet_jax.training.step import Controls, StepConfig, make_optimizer, make_train_step

    words = options(__doc__, seconds=3.0)
    words.add_argument("data", metavar="DATA")
    words.add_argument("--model", default="rcmnet")
    chosen = words.parse_args()

    data, placement = prepare(chosen.data, ImageRule(chosen.size)), Placement.everywhere()
    labels, rows = np.maximum(data.examples.label, 0), np.arange(len(data.examples.label))
    common = {"batch_size": chosen.batch, "seed": 0, "placing": placement}
    loaders: dict[str, Loader] = {
        "resident": ResidentLoader(placement.put_copies(data.images()), labels, rows, **common),
        "streamed": StreamLoader(data.reader(), labels, rows, **common),
    }
    network = Network(ModelConfig(name=chosen.model), classes=len(data.classes), image_size=chosen.size)
    step_config = StepConfig(OptimizerConfig(), AugmentConfig())
    step_fn = make_train_step(network, step_config, placement)
    controls = Controls.on_host(1e-3, True, np.ones(len(data.classes), np.float32), 0)

    def alone(loader: Loader) -> Contender:
        cursor = [0]

        def run(n: int) -> None:
            for _ in range(n):
                batch = loader.batch(cursor[0])
                cursor[0] += 1
            jax.block_until_ready(batch)

        return Contender("", run, chosen.batch)

    def training(loader: Loader) -> Contender:
        cursor, state = [0], [states.create(*network.init(0), make_optimizer(network, step_config))]
        state[0] = placement.put_copies(state[0])

        def run(n: int) -> None:
            for _ in range(n):
                state[0], metrics = step_fn(state[0], loader.batch(cursor[0]), controls)
                cursor[0] += 1
            jax.block_until_ready((state[0], metrics))

        return Contender("", run, chosen.batch)

    rows_out, facts = [], {}
    for what, make in (("batches alone", alone), ("in training", training)):
        resident, streamed = contest(
            [make(loaders["resident"]), make(loaders["streamed"])], rounds=chosen.rounds, seconds=chosen.seconds
        )
        value, low, high = ratio(streamed, resident)
        rows_out.append(
            [what, f"{resident.median:.0f} ± {resident.spread:.0f}", f"{streamed.median:.0f} ± {streamed.spread:.0f}",
             f"{value:.2f} ({low:.2f}-{high:.2f})"]
        )  # fmt: skip
        facts[what] = {"resident": resident.rates, "streamed": streamed.rates, "share": value}
    title = f"{chosen.model}, {chosen.size} px, batch {chosen.batch}, {len(rows)} images: images/s"
    publish(title, ["", "resident", "streamed", "share"], rows_out, facts, chosen.output)


if __name__ == "__main__":
    runtime.use_huge_pages()  # as launch.py does; PyTorch computes under the same conditions
    runtime.set_up()
    main()
