"""Training step and inference against PyTorch: the same network, batch and update rule, in turn, each turn a process.

    python -m benchmarks.step --model rcmnet --size 64 --what train

Ours twice: `step` has what the PyTorch contenders have (forward, backward, SGD with Nesterov momentum and decay), `in
runs` is the step as training compiles it, with augmentation, averages of the weights and checks besides. PyTorch's
twin (tests/reference/twin.py) runs channels_last, eager and compiled, with the fused optimiser. `--plain` adds the step
of a run in XLA's own forms of convolution, pooling, norms and gates: what it was before there were others.

    python -m benchmarks.step --size 224 --batch 512 --precision bfloat16 --together 8      on an accelerator

`--together` adds steps of a run with their loader, several a dispatch. PyTorch computes on a GPU where it finds one,
under autocast in bfloat16. The share of XLA's product counts a step as 3 forward passes, a multiply-add as 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from dataclasses import dataclass
from typing import Any

from benchmarks.contest import Contender, alone, options, publish, ratio, roofline, turns
from rcmnet_jax import runtime  # sets XLA's flags before JAX starts

RATE, MOMENTUM, DECAY = 1e-3, 0.9, 5e-4
OURS = {"train": ["ours, step", "ours, in runs"], "infer": ["ours"]}
THEIRS = ["PyTorch, eager", "PyTorch, compiled"]
PLAIN = ", plain"  # what the names of ours in XLA's own forms end with
TOGETHER = "ours, in runs, together"


@dataclass(frozen=True)
class Work:
    """What all contenders compute."""

    model: str = "rcmnet"
    size: int = 64  # pixels
    batch: int = 32
    what: str = "train"  # train | infer
    precision: str = "float32"  # float32 | bfloat16
    together: int = 1  # steps a dispatch of the contender TOGETHER
    classes: int = 8

    @property
    def arguments(self) -> list[str]:
        """As this program's command line has it."""
        return [word for key, value in dataclasses.asdict(self).items() for word in (f"--{key}", str(value))]

    @property
    def gflop(self) -> float:
        """Of an image, in a step or a forward pass: a step counts as three of these."""
        from rcmnet_jax.config import ModelConfig
        from rcmnet_jax.models import Network
        from rcmnet_jax.models.registry import forward_flops

        network = Network(ModelConfig(name=self.model), classes=self.classes, image_size=self.size)
        return forward_flops(network) / 1e9 * (3 if self.what == "train" else 1)


def contender(name: str, work: Work) -> Contender:
    """The contender of a name in OURS or THEIRS, or TOGETHER; one of OURS may end with PLAIN."""
    if name in THEIRS:
        return theirs(work, name == THEIRS[1])
    makers = {"ours": inference, "ours, step": bare_step, "ours, in runs": run_step, TOGETHER: run_steps}
    found = makers[name.removesuffix(PLAIN)](work)
    return plain(found) if name.endswith(PLAIN) else found


def plain(one: Contender) -> Contender:
    """The same, compiled in the forms that every backend has."""
    from rcmnet_jax.models.backend import portable

    def run(n: int) -> None:
        with portable():
            one.run(n)

    return Contender(one.name + PLAIN, run, one.images)


def network_of(work: Work) -> tuple[Any, Any, Any]:
    """Our network, with its first parameters and BatchNorm statistics."""
    from rcmnet_jax.config import ModelConfig
    from rcmnet_jax.models import Network

    network = Network(ModelConfig(name=work.model), classes=work.classes, image_size=work.size)
    return network, *network.init(0)


def drawn(work: Work) -> tuple[Any, Any]:
    """A batch of noise: uint8 images (B, S, S, 3) and int32 labels (B,)."""
    import numpy as np

    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (work.batch, work.size, work.size, 3), np.uint8)
    return pixels, random.integers(0, work.classes, work.batch).astype(np.int32)


def inference(work: Work) -> Contender:
    """JAX, forward alone, a wait after each batch."""
    import jax
    import jax.numpy as jnp

    network, params, stats = network_of(work)
    images, dtype = jnp.asarray(drawn(work)[0] / 255, jnp.float32), jnp.dtype(work.precision)
    forward = jax.jit(lambda p, s, x: network(p, s, x, dtype=dtype)[0])

    def run(n: int) -> None:
        for _ in range(n):
            jax.block_until_ready(forward(params, stats, images))

    return Contender("ours", run, work.batch)


def bare_step(work: Work) -> Contender:
    """JAX, what the PyTorch contenders do: forward, backward, SGD with Nesterov momentum and decay."""
    import jax
    import jax.numpy as jnp
    import optax

    network, params, stats = network_of(work)
    pixels, drawn_labels = drawn(work)
    images, labels = jnp.asarray(pixels / 255, jnp.float32), jnp.asarray(drawn_labels)
    dtype = jnp.dtype(work.precision)
    rule = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE, MOMENTUM, nesterov=True))

    def update(carry: Any, images: Any, labels: Any) -> Any:
        params, stats, opt = carry

        def loss(params: Any) -> Any:
            logits, new = network(params, stats, images, train=True, dtype=dtype)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new

        (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt = rule.update(gradients, opt, params)
        return (optax.apply_updates(params, updates), stats, opt), value

    held = [(params, stats, rule.init(params))]
    compiled = jax.jit(update, donate_argnums=0)

    def run(n: int) -> None:
        for _ in range(n):
            held[0], value = compiled(held[0], images, labels)
        jax.block_until_ready((held[0], value))

    return Contender("ours, step", run, work.batch)


def step_config_of(work: Work) -> Any:
    """A run's, at this precision."""
    from rcmnet_jax.config import AugmentConfig, OptimizerConfig
    from rcmnet_jax.training.step import StepConfig

    return StepConfig(OptimizerConfig(name="sgd", precision=work.precision), AugmentConfig())


def run_step(work: Work) -> Contender:
    """JAX, the step as training compiles it."""
    import jax
    import numpy as np

    from rcmnet_jax.data.augment import split_position
    from rcmnet_jax.data.loader import Batch
    from rcmnet_jax.training import state as states
    from rcmnet_jax.training.sharding import Placement
    from rcmnet_jax.training.step import Controls, make_optimizer, make_train_step

    network, params, stats = network_of(work)
    placement, step_config = Placement.everywhere(), step_config_of(work)
    step, put = make_train_step(network, step_config, placement), placement.put_batch
    state = [placement.put_copies(states.create(params, stats, make_optimizer(network, step_config)))]
    pixels, labels = drawn(work)
    one = Batch(put(pixels), put(labels), put(split_position(np.arange(work.batch))))
    controls = Controls.on_host(RATE, True, np.ones(work.classes, np.float32), 0)

    def run(n: int) -> None:
        for _ in range(n):
            state[0], metrics = step(state[0], one, controls)
        jax.block_until_ready((state[0], metrics))

    return Contender("ours, in runs", run, work.batch)


def run_steps(work: Work) -> Contender:
    """JAX, several steps of a run with their loader in one dispatch.

    Raises:
      SystemExit: --together asks for one at a time.
    """
    import jax
    import numpy as np

    from rcmnet_jax.data.loader import ResidentLoader
    from rcmnet_jax.training import state as states
    from rcmnet_jax.training.multistep import make_multistep
    from rcmnet_jax.training.sharding import Placement
    from rcmnet_jax.training.step import Controls, make_optimizer

    network, params, stats = network_of(work)
    placement, step_config = Placement.everywhere(), step_config_of(work)
    program = make_multistep(network, step_config, placement, work.together)
    if program is None:
        raise SystemExit(f"--together {work.together}: takes its steps one at a time.")
    state = [placement.put_copies(states.create(params, stats, make_optimizer(network, step_config)))]
    controls = Controls.on_host(RATE, True, np.ones(work.classes, np.float32), 0)
    given = controls.at(np.full(program.count, RATE, np.float32), np.ones(program.count, bool))
    pixels, labels = drawn(work)
    loader = ResidentLoader(
        placement.put_batch(pixels), labels, np.arange(work.batch), batch_size=work.batch, seed=0, placing=placement
    )

    def run(n: int) -> None:
        for k in range(n):
            batches = loader.batches(range(k * program.count, (k + 1) * program.count))
            state[0], metrics = program.run(state[0], batches, given)
        jax.block_until_ready((state[0], metrics))

    return Contender(TOGETHER, run, work.batch * program.count)


def theirs(work: Work, compiled: bool) -> Contender:
    """PyTorch's twin, channels_last, on the GPU where there is one."""
    import torch
    from torch import nn

    from rcmnet_jax.models import MODELS
    from tests.reference import twin

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as XLA has it
    twin.MHSA = quick_attention(twin.MHSA)
    entry, size = MODELS[work.model], (work.size, work.size)
    net = twin.Twin(entry.body, entry.cbam, entry.mhsa, classes=work.classes, size=size)
    net = net.to(device, memory_format=torch.channels_last)
    images = torch.rand(work.batch, 3, *size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(0, work.classes, (work.batch,), device=device)
    net.train(work.what == "train")
    mode = "max-autotune" if device.type == "cuda" else "default"
    called = torch.compile(net, mode=mode) if compiled else net
    name = f"PyTorch, {'compiled' if compiled else 'eager'}"

    def autocast() -> Any:
        return torch.autocast(device.type, torch.bfloat16, enabled=work.precision == "bfloat16")

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    if work.what == "infer":

        def infer(n: int) -> None:
            with torch.inference_mode(), autocast():
                for _ in range(n):
                    called(images)
                    wait()

        return Contender(name, infer, work.batch)

    rule = torch.optim.SGD(net.parameters(), RATE, MOMENTUM, weight_decay=DECAY, nesterov=True, fused=True)

    def train(n: int) -> None:
        for _ in range(n):
            rule.zero_grad(set_to_none=True)
            with autocast():
                loss = nn.functional.cross_entropy(called(images), labels)
            loss.backward()
            rule.step()
        wait()

    return Contender(name, train, work.batch)


def quick_attention(slow: Any) -> Any:
    """The twin's attention with its relative positions looked up in one go; the twin builds them pair by pair."""
    import torch

    class Quick(slow):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            n, c, h, w = x.shape
            d = c // self.heads
            q, k, v = (f(x).view(n, self.heads, d, h * w).transpose(2, 3) for f in (self.query, self.key, self.value))
            y = torch.arange(h, device=x.device).repeat_interleave(w)
            z = torch.arange(w, device=x.device).repeat(h)
            r = self.rel_height[y[None] - y[:, None] + h - 1] + self.rel_width[z[None] - z[:, None] + w - 1]
            logits = q @ k.transpose(2, 3) + torch.einsum("nhid,ijd->nhij", q, r)
            out = torch.softmax(logits / d**0.5, dim=-1) @ v
            return out.transpose(2, 3).reshape(n, c, h, w)

    return Quick


def main() -> None:
    words = options(__doc__, seconds=2.0)
    words.add_argument("--model", default="rcmnet")
    words.add_argument("--what", choices=tuple(OURS), default="train")
    words.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    words.add_argument("--together", type=int, default=1, help="add steps of a run, so many a dispatch")
    words.add_argument("--classes", type=int, default=8)
    words.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    words.add_argument("--plain", action="store_true", help="add ours in XLA's own forms")
    words.add_argument("--alone", nargs=2, metavar=("NAME", "SECONDS"), help=argparse.SUPPRESS)
    chosen = words.parse_args()
    work = Work(**{field.name: getattr(chosen, field.name) for field in dataclasses.fields(Work)})
    if chosen.alone:
        name, seconds = chosen.alone
        runtime.set_up()
        alone(contender(name, work), float(seconds))
        return
    limits = roofline(work.precision)
    names = [n for n in OURS[work.what] + THEIRS if not (chosen.no_compile and n == THEIRS[1])]
    names += [OURS[work.what][-1] + PLAIN] * chosen.plain + [TOGETHER] * (work.what == "train" and work.together > 1)
    results = turns("benchmarks.step", work.arguments, names, rounds=chosen.rounds, seconds=chosen.seconds)
    best = max((r for r in results if r.name.startswith("PyTorch")), key=lambda r: r.median)
    shares = {r.name: r.median * work.gflop / limits["product_xla_gflops"] for r in results}
    rows = []
    for result in results:
        value, low, high = ratio(result, best)
        rates = f"{result.median:.1f} ± {result.spread:.1f}", f"{value:.2f} ({low:.2f}-{high:.2f})"
        rows.append([result.name, *rates, f"{shares[result.name]:.0%}"])
    kind = f"{work.what}, {work.precision}"
    title = f"{work.model}, {work.size} px, batch {work.batch}, {kind}: images/s, ratio to PyTorch's best"
    facts = {
        "results": {r.name: r.rates for r in results},
        "ratios": {r.name: ratio(r, best) for r in results},
        "roofline": limits,
        "shares": shares,
        "arguments": {k: str(v) for k, v in vars(chosen).items() if k != "alone"},
    }
    publish(title, ["", "images/s", "ratio", "of XLA's product"], rows, facts, chosen.output)
    print("limits of this machine:", ", ".join(f"{name} {value}" for name, value in limits.items()))


if __name__ == "__main__":
    runtime.use_huge_pages()  # as launch.py does; PyTorch computes under the same conditions
    main()
