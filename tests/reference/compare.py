"""Both sides of one training step, from the same weights: what the parity tests and the fixtures' script share."""

import jax
import jax.numpy as jnp
import numpy as np

from rcmnet_jax.checkpoint.torch import from_torch, to_torch
from rcmnet_jax.config import ModelConfig
from rcmnet_jax.models import MODELS, Network


def problem(config: ModelConfig, size: tuple[int, int], *, batch: int = 4, classes: int = 5, seed: int = 0):
    """Network, and float64 numpy params, batch_stats, images (B, H, W, 3), labels (B,), none of them special.

    All leaves are moved off their start, since scales of 1, biases of 0 and gates of scale 0 would hide mistakes.
    """
    network = Network(config, classes=classes, image_size=size)
    random = np.random.default_rng(seed)
    params, stats = network.init(seed)
    noise = 0.05 * min(1, 8 / config.width)  # small beside wide layers' kernels: else float32 loses the gradients
    params = jax.tree.map(lambda a: np.asarray(a, np.float64) + noise * random.standard_normal(a.shape), params)
    stats = jax.tree.map(lambda a: np.asarray(a, np.float64) + 0.2 * random.random(a.shape), stats)
    images = random.random((batch, *size, 3))
    return network, params, stats, images, random.integers(0, classes, batch)


def jax_step(network, params, stats, images, labels, dtype):
    """Loss, training logits, inference logits, gradients and updated statistics as numpy trees, in `dtype`."""

    def loss(params, stats, images):
        logits, new = network(params, stats, images, train=True)
        return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels].mean(), (logits, new)

    with jax.enable_x64(dtype == np.float64):
        args = jax.tree.map(lambda a: jnp.asarray(a, dtype), (params, stats, images))
        (value, (logits, new)), grads = _run(jax.value_and_grad(loss, has_aux=True), args, dtype)
        infer = _run(lambda *a: network(*a)[0], args, dtype)
        return jax.tree.map(np.asarray, (value, logits, infer, grads, new))


def _run(function, args, dtype):
    # What float64 is to show holds without the compiler's care, which takes six times as long.
    fast = {"xla_backend_optimization_level": 0}
    if jax.__version_info__ < (0, 11):
        fast["xla_cpu_use_fusion_emitters"] = False
    options = fast if dtype == np.float64 and jax.default_backend() == "cpu" else {}
    return jax.jit(function).lower(*args).compile(options)(*args)


def torch_step(network, params, stats, images, labels, dtype):
    """The same of the twin, mapped to our names."""
    import torch

    from tests.reference.twin import Twin

    entry, c = MODELS[network.config.name], network.config
    twin = Twin(
        entry.body, entry.cbam, entry.mhsa, classes=network.classes, size=network.image_size, width=c.width,
        norm=c.norm, reduction=c.cbam_reduction, kernel=c.cbam_kernel, placement=c.cbam_placement,
        double=c.gate == "identity", heads=c.heads, position=c.position,
    ).to(torch.float64 if dtype == np.float64 else torch.float32)  # fmt: skip
    state = {k: torch.from_numpy(v.astype(dtype)) for k, v in to_torch(params, stats).items()}
    missing, unexpected = twin.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    x = torch.from_numpy(images.astype(dtype)).permute(0, 3, 1, 2)
    infer = twin.eval()(x).detach()
    logits = twin.train()(x)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    loss.backward()
    grads, _ = from_torch({k: p.grad for k, p in twin.named_parameters()})
    _, new = from_torch(twin.state_dict())
    return loss.item(), logits.detach().numpy(), infer.numpy(), grads, new


def off(ours, theirs) -> list[float]:
    """The difference of each leaf of two trees of equal keys, relative to its norm."""
    flat, structure = jax.tree.flatten(ours)
    other, same = jax.tree.flatten(theirs)
    assert structure == same, f"{structure} differs from {same}"
    return [
        float(np.linalg.norm(np.asarray(a, np.float64) - b) / max(np.linalg.norm(b), 1e-12))
        for a, b in zip(flat, other, strict=True)
    ]


def worst(ours, theirs) -> float:
    """The largest of these differences."""
    return max(off(ours, theirs), default=0.0)
