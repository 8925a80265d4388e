"""The exported network in plain PyTorch: `load(folder)` gives it with its weights, ready to use.

It maps images, uint8 (N, S, S, 3) RGB of the size that architecture.json states, to probabilities, float32 (N, K).
Scaling, normalisation, temperature and softmax are inside. Needs torch and safetensors, nothing else.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in [0, 1]
Options = dict[str, Any]


def load(folder: str | Path) -> "Classifier":
    """The network of a folder with architecture.json and model.safetensors, in evaluation mode."""
    from safetensors.torch import load_file

    model = build(json.loads((Path(folder) / "architecture.json").read_text(encoding="utf-8")))
    fill(model, load_file(Path(folder) / "model.safetensors"))
    return model


def build(options: Options) -> "Classifier":
    """The network that architecture.json describes, its weights random, in evaluation mode."""
    model: Classifier = ViT(options) if options["body"] == "vit" else ResNet(options)
    model.eval()
    return model


def fill(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Loads a state dict whole; only BatchNorm's counters of batches may be missing."""
    missing, unexpected = model.load_state_dict(state, strict=False)
    wrong = [name for name in [*missing, *unexpected] if not name.endswith("num_batches_tracked")]
    if wrong:
        raise ValueError(f"the weights do not fit the architecture: {', '.join(wrong[:3])}")


class Classifier(nn.Module):
    """Images -> probabilities (N, K). A subclass has `features`, (N, 3, S, S) -> (N, C), and the head `fc`."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.temperature, self.views = float(options["temperature"]), options["views"]
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def logits(self, images: Tensor) -> Tensor:
        """(N, K), before the temperature."""
        x = images.permute(0, 3, 1, 2).to(self.mean.dtype) / 255
        return self.fc(self.features((x - self.mean) / self.std))

    def forward(self, images: Tensor) -> Tensor:
        if self.views == "dihedral":
            flipped = [images, images.flip(1), images.flip(2), images.flip((1, 2))]
            eight = torch.cat([*flipped, *(view.transpose(1, 2) for view in flipped)])
            logits = self.logits(eight).reshape(8, images.shape[0], -1).mean(0)
        else:
            logits = self.logits(images)
        return torch.softmax(logits / self.temperature, dim=1)


class ResNet(Classifier):
    """ResNet in torchvision's layout and names, with CBAM and self-attention where the options have them."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        block = Bottleneck if options["body"] == "resnet50" else BasicBlock
        width, size = options["width"], [-(-side // 4) for side in options["image_size"]]
        self.conv1, self.bn1 = conv(3, width, 7, stride=2), norm(options, width)
        inputs = width
        for i, blocks in enumerate(BLOCKS[options["body"]]):
            stage, planes = nn.Sequential(), width * 2**i
            for j in range(blocks):
                stride = 2 if i > 0 and j == 0 else 1
                attend = options["mhsa"] and i == 3
                stage.add_module(str(j), block(options, inputs, planes, stride, size, attend))
                size, inputs = [-(-side // stride) for side in size], planes * block.expansion
            if options["cbam"] and options["cbam_placement"] == "stage":
                stage.add_module("cbam", CBAM(options, inputs))
            self.add_module(f"layer{i + 1}", stage)
        self.fc = nn.Linear(inputs, options["classes"])

    def features(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)


def norm(options: Options, channels: int) -> nn.Module:
    if options["norm"] == "group":
        return nn.GroupNorm(max(channels // 16, 1), channels)
    return nn.BatchNorm2d(channels)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, options: Options, inputs: int, planes: int, stride: int, size: list[int], attend: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, planes, 3, stride), norm(options, planes)
        if attend:
            self.mhsa = MHSA(options, planes, [-(-side // stride) for side in size])
        else:
            self.conv2 = conv(planes, planes, 3)
        self.bn2 = norm(options, planes)
        self.attend = attend
        self.cbam, self.downsample = extras(options, inputs, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.cbam(self.bn2(self.mhsa(y) if self.attend else self.conv2(y)))
        return F.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, options: Options, inputs: int, planes: int, stride: int, size: list[int], attend: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, planes, 1), norm(options, planes)
        if attend:
            self.mhsa = MHSA(options, planes, size)
        else:
            self.conv2 = conv(planes, planes, 3, stride)
        self.bn2 = norm(options, planes)
        self.conv3, self.bn3 = conv(planes, 4 * planes, 1), norm(options, 4 * planes)
        self.attend, self.stride = attend, stride
        self.cbam, self.downsample = extras(options, inputs, 4 * planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        if self.attend:
            y = self.mhsa(y)
            y = halve(y) if self.stride == 2 else y
        else:
            y = self.conv2(y)
        y = self.bn3(self.conv3(F.relu(self.bn2(y))))
        return F.relu(self.cbam(y) + self.downsample(x))


def extras(options: Options, inputs: int, outputs: int, stride: int) -> tuple[nn.Module, nn.Module]:
    """The gates on a block's branch, and what brings its shortcut to the output's shape."""
    gated = options["cbam"] and options["cbam_placement"] == "block"
    change = stride != 1 or inputs != outputs
    shortcut = nn.Sequential(conv(inputs, outputs, 1, stride), norm(options, outputs)) if change else nn.Identity()
    return CBAM(options, outputs) if gated else nn.Identity(), shortcut


def halve(x: Tensor) -> Tensor:
    """Mean over 2x2 windows at stride 2; at an odd edge over the cells there are."""
    odd = (0, x.shape[3] % 2, 0, x.shape[2] % 2)
    share = F.avg_pool2d(F.pad(torch.ones_like(x[:1, :1]), odd), 2)
    return F.avg_pool2d(F.pad(x, odd), 2) / share


class CBAM(nn.Module):
    """A gate over channels, then one over space (Woo et al. 2018); names as in the authors' code."""

    def __init__(self, options: Options, channels: int) -> None:
        super().__init__()
        self.ChannelGate = ChannelGate(options, channels)
        self.SpatialGate = SpatialGate(options)

    def forward(self, x: Tensor) -> Tensor:
        return self.SpatialGate(self.ChannelGate(x))


class ChannelGate(nn.Module):
    def __init__(self, options: Options, channels: int) -> None:
        super().__init__()
        hidden = max(channels // options["cbam_reduction"], 1)
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.factor = options["gate_factor"]

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3)))) * self.factor
        return x * gate[:, :, None, None]


class SpatialGate(nn.Module):
    def __init__(self, options: Options) -> None:
        super().__init__()
        self.spatial = nn.Sequential()
        self.spatial.add_module("conv", conv(2, 1, options["cbam_kernel"]))
        self.spatial.add_module("bn", norm(options, 1))
        self.factor = options["gate_factor"]

    def forward(self, x: Tensor) -> Tensor:
        summary = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
        return x * (torch.sigmoid(self.spatial(summary)) * self.factor)


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """softmax(query . key + bias) value, all (N, heads, T, d), the query scaled."""
    return torch.softmax(query @ key.transpose(2, 3) + bias, dim=-1) @ value


class MHSA(nn.Module):
    """Self-attention over a feature map (Srinivas et al. 2021), relative or absolute positions, heads share them."""

    def __init__(self, options: Options, channels: int, size: list[int]) -> None:
        super().__init__()
        self.heads, self.position, self.size = options["heads"], options["position"], size
        depth = channels // self.heads
        self.query, self.key, self.value = (conv(channels, channels, 1) for _ in range(3))
        for axis, length in zip(("height", "width"), size, strict=True):
            if self.position == "relative":
                self.register_parameter(f"rel_{axis}", nn.Parameter(torch.zeros(2 * length - 1, depth)))
                places = torch.arange(length)
                self.register_buffer(f"{axis}_offsets", places[None] - places[:, None] + length - 1, persistent=False)
            elif self.position == "absolute":
                self.register_parameter(f"abs_{axis}", nn.Parameter(torch.zeros(length, depth)))

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.size
        query, key, value = (
            part(x).reshape(-1, self.heads, x.shape[1] // self.heads, height * width).transpose(2, 3)
            for part in (self.query, self.key, self.value)
        )  # (N, heads, T, d)
        query = query * query.shape[-1] ** -0.5
        bias: Tensor | float = 0.0
        if self.position == "absolute":
            key = key + (self.abs_height[:, None] + self.abs_width[None]).reshape(height * width, -1)
        if self.position == "relative":
            bias = self.relative(query)
        return attention(query, key, value, bias).transpose(2, 3).reshape(-1, x.shape[1], height, width)

    def relative(self, query: Tensor) -> Tensor:
        """q.(r_h + r_w) for all pairs of places, (N, heads, T, T)."""
        height, width = self.size
        grid = query.reshape(-1, self.heads, height, width, query.shape[-1])
        rows, columns = self.rel_height[self.height_offsets], self.rel_width[self.width_offsets]  # (H, H, d), (W, W, d)
        by_row = torch.einsum("nhyxd,yvd->nhyxv", grid, rows)[..., :, None]
        by_column = torch.einsum("nhyxd,xud->nhyxu", grid, columns)[..., None, :]
        return (by_row + by_column).reshape(-1, self.heads, height * width, height * width)


class ViT(Classifier):
    """ViT-S/16 with the mean of the tokens (Beyer et al. 2022): 12 layers of 6 heads."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        channels, grid = 6 * options["width"], [-(-side // 16) for side in options["image_size"]]
        self.edge = (0, grid[1] * 16 - options["image_size"][1], 0, grid[0] * 16 - options["image_size"][0])
        self.patch_embed = nn.Sequential()
        self.patch_embed.add_module("proj", nn.Conv2d(3, channels, 16, stride=16))
        self.position = nn.Parameter(torch.zeros(*grid, channels))
        self.blocks = nn.Sequential(*(Layer(channels) for _ in range(12)))
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.fc = nn.Linear(channels, options["classes"])

    def features(self, x: Tensor) -> Tensor:
        x = self.patch_embed(F.pad(x, self.edge)).flatten(2).transpose(1, 2)
        return self.norm(self.blocks(x + self.position.flatten(0, 1))).mean(1)


class Layer(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels, eps=1e-6), nn.LayerNorm(channels, eps=1e-6)
        self.attn = Attention(channels)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(channels, 4 * channels))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("fc2", nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens, channels = x.shape[1:]
        query, key, value = self.qkv(x).reshape(-1, tokens, 3, 6, channels // 6).permute(2, 0, 3, 1, 4)
        y = attention(query * query.shape[-1] ** -0.5, key, value)
        return self.proj(y.transpose(1, 2).reshape(-1, tokens, channels))
