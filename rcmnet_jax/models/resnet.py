"""ResNet-18, 34 and 50 in torchvision's layout, with attention where the configuration asks for it."""

from __future__ import annotations

from dataclasses import dataclass

from flax import nnx
from jax import Array

from rcmnet_jax.config import ModelConfig
from rcmnet_jax.models.cbam import CBAM
from rcmnet_jax.models.conv import halve, max_pool
from rcmnet_jax.models.layers import Conv, Linear
from rcmnet_jax.models.mhsa import MHSA
from rcmnet_jax.models.norm import BatchNorm, GroupNorm, norm

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
STAGES = ("layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class ResNetSpec:
    """What a ResNet is built of: the body's name, the two kinds of attention, whether gates start at 1."""

    body: str
    cbam: bool
    mhsa: bool
    identity: bool
    config: ModelConfig

    def norm(self, channels: int) -> BatchNorm | GroupNorm:
        """The normalisation of a convolution's output."""
        return norm(self.config.norm, channels)

    def gates(self, channels: int) -> CBAM:
        """A CBAM module for so many channels."""
        c = self.config
        return CBAM(channels, reduction=c.cbam_reduction, kernel=c.cbam_kernel, kind=c.norm, identity=self.identity)

    def attention(self, inputs: int, outputs: int, size: tuple[int, int]) -> MHSA:
        """Self-attention over a feature map of `size`."""
        return MHSA(inputs, outputs, size, heads=self.config.heads, position=self.config.position)


def halved(size: tuple[int, int]) -> tuple[int, int]:
    """Side lengths after a convolution or pool of stride 2, rounded up."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2


class Shortcut(nnx.Module):
    """1x1 convolution and norm that bring a block's input to its output's shape; keys as torchvision's Sequential."""

    def __init__(self, inputs: int, outputs: int, stride: int, parts: ResNetSpec):
        setattr(self, "0", Conv(inputs, outputs, 1, stride=stride))
        setattr(self, "1", parts.norm(outputs))

    def __call__(self, x: Array, train: bool) -> Array:
        return getattr(self, "1")(getattr(self, "0")(x), train)  # type: ignore[no-any-return]


class Block(nnx.Module):
    """Basic residual block (He et al. 2015, fig. 5 left), (B, H, W, C_in) -> (B, H/stride, W/stride, planes).

    `attend` replaces the second convolution by self-attention; CBAM acts before the shortcut is added.
    """

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, size: tuple[int, int], parts: ResNetSpec, attend: bool):
        self.conv1, self.bn1 = Conv(inputs, planes, 3, stride=stride), parts.norm(planes)
        if attend:
            self.mhsa = parts.attention(planes, planes, halved(size) if stride == 2 else size)
        else:
            self.conv2 = Conv(planes, planes, 3)
        self.bn2 = parts.norm(planes)
        self.cbam = parts.gates(planes) if _in_block(parts) else None
        self.downsample = Shortcut(inputs, planes, stride, parts) if stride != 1 or inputs != planes else None
        self.attend = attend

    def __call__(self, x: Array, train: bool) -> Array:
        y = nnx.relu(self.bn1(self.conv1(x), train))
        y = self.bn2(self.mhsa(y) if self.attend else self.conv2(y), train)
        return _join(self, x, y, train)


class Bottleneck(nnx.Module):
    """Bottleneck block (He et al. 2015, fig. 5 right), 4 planes channels out; the stride is at the 3x3, as torchvision.

    `attend` replaces the 3x3 by self-attention, followed by a 2x2 mean where it is strided (Srinivas et al. 2021).
    """

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, size: tuple[int, int], parts: ResNetSpec, attend: bool):
        outputs = self.expansion * planes
        self.conv1, self.bn1 = Conv(inputs, planes, 1), parts.norm(planes)
        if attend:
            self.mhsa = parts.attention(planes, planes, size)
        else:
            self.conv2 = Conv(planes, planes, 3, stride=stride)
        self.bn2 = parts.norm(planes)
        self.conv3, self.bn3 = Conv(planes, outputs, 1), parts.norm(outputs)
        self.cbam = parts.gates(outputs) if _in_block(parts) else None
        self.downsample = Shortcut(inputs, outputs, stride, parts) if stride != 1 or inputs != outputs else None
        self.attend, self.stride = attend, stride

    def __call__(self, x: Array, train: bool) -> Array:
        y = nnx.relu(self.bn1(self.conv1(x), train))
        if self.attend:
            y = self.mhsa(y)
            y = halve(y) if self.stride == 2 else y
        else:
            y = self.conv2(y)
        y = nnx.relu(self.bn2(y, train))
        return _join(self, x, self.bn3(self.conv3(y), train), train)


def _in_block(parts: ResNetSpec) -> bool:
    return parts.cbam and parts.config.cbam_placement == "block"


def _join(block: Block | Bottleneck, x: Array, y: Array, train: bool) -> Array:
    if block.cbam is not None:
        y = block.cbam(y, train)
    return nnx.relu(y + (x if block.downsample is None else block.downsample(x, train)))


class Stage(nnx.Module):
    """Blocks "0", "1", ... in a row, then CBAM where it is placed after stages."""

    def __init__(self, kind: type[Block] | type[Bottleneck], inputs: int, planes: int, blocks: int, first: bool,
                 size: tuple[int, int], parts: ResNetSpec, attend: bool):  # fmt: skip
        self.blocks = blocks
        for i in range(blocks):
            stride = 2 if i == 0 and not first else 1
            setattr(self, str(i), kind(inputs, planes, stride, size, parts, attend))
            size, inputs = halved(size) if stride == 2 else size, planes * kind.expansion
        after = parts.cbam and parts.config.cbam_placement == "stage"
        self.cbam = parts.gates(inputs) if after else None

    def __call__(self, x: Array, train: bool) -> Array:
        for i in range(self.blocks):
            x = getattr(self, str(i))(x, train)
        return x if self.cbam is None else self.cbam(x, train)

    def attention(self, x: Array) -> Array:
        """The attention weights of the last block, (B, heads, N, N), in inference mode."""
        for i in range(self.blocks - 1):
            x = getattr(self, str(i))(x, False)
        last = getattr(self, str(self.blocks - 1))
        weights: Array = last.mhsa.weights(nnx.relu(last.bn1(last.conv1(x), False)))
        return weights


class ResNet(nnx.Module):
    """Maps normalised images (B, H, W, 3) to features (B, ceil(H/32), ceil(W/32), C); `fc` is the head over their mean.

    C is 8 times the width, and 4 times that with bottlenecks. Attention over positions is in the last stage.
    """

    def __init__(self, parts: ResNetSpec, classes: int, size: tuple[int, int]):
        kind = Bottleneck if parts.body == "resnet50" else Block
        width = parts.config.width
        self.conv1, self.bn1 = Conv(3, width, 7, stride=2), parts.norm(width)
        size, inputs = halved(halved(size)), width
        for i, (name, blocks) in enumerate(zip(STAGES, BLOCKS[parts.body], strict=True)):
            planes = width * 2**i
            stage = Stage(kind, inputs, planes, blocks, i == 0, size, parts, parts.mhsa and name == STAGES[-1])
            setattr(self, name, stage)
            size, inputs = size if i == 0 else halved(size), planes * kind.expansion
        self.fc = Linear(inputs, classes, wide=True)
        self.layers, self.attends = STAGES, parts.mhsa

    def features(self, x: Array, train: bool) -> Array:
        """The last feature map."""
        return self.up_to(x, STAGES[-1], train)

    def up_to(self, x: Array, layer: str, train: bool) -> Array:
        """The feature map that the stage `layer` gives."""
        x = max_pool(nnx.relu(self.bn1(self.conv1(x), train)))
        for name in STAGES[: STAGES.index(layer) + 1]:
            x = getattr(self, name)(x, train)
        return x

    def features_from(self, x: Array, layer: str) -> Array:
        """The last feature map from that of `layer`, in inference mode."""
        for name in STAGES[STAGES.index(layer) + 1 :]:
            x = getattr(self, name)(x, False)
        return x

    def attention(self, x: Array) -> Array:
        """The attention weights of the last block, (B, heads, N, N), in inference mode; N positions of its map."""
        last: Stage = getattr(self, STAGES[-1])
        return last.attention(self.up_to(x, STAGES[-2], False))
