"""The same networks in plain PyTorch, written from the papers and without a look at the JAX code.

ResNet as in torchvision (He et al. 2015), CBAM with the module names of its authors' code (Woo et al. 2018), MHSA as
in BoTNet (Srinivas et al. 2021). Only for comparison in tests and benchmarks.
"""

import torch
import torch.nn.functional as F
from torch import nn

LAYERS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}


class ChannelGate(nn.Module):
    def __init__(self, channels, reduction, double):
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.factor = 2 if double else 1

    def forward(self, x):
        average = self.mlp(F.adaptive_avg_pool2d(x, 1))
        maximum = self.mlp(F.adaptive_max_pool2d(x, 1))
        return x * self.factor * torch.sigmoid(average + maximum)[:, :, None, None]


class ConvBN(nn.Module):
    def __init__(self, kernel, norm):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)
        self.bn = norm(1)

    def forward(self, x):
        return self.bn(self.conv(x))


class SpatialGate(nn.Module):
    def __init__(self, kernel, norm, double):
        super().__init__()
        self.spatial = ConvBN(kernel, norm)
        if isinstance(self.spatial.bn, nn.BatchNorm2d):
            self.spatial.bn.momentum = 0.01
        self.factor = 2 if double else 1

    def forward(self, x):
        summary = torch.cat([x.max(1, keepdim=True)[0], x.mean(1, keepdim=True)], dim=1)
        return x * self.factor * torch.sigmoid(self.spatial(summary))


class CBAM(nn.Module):
    def __init__(self, channels, options):
        super().__init__()
        self.ChannelGate = ChannelGate(channels, options["reduction"], options["double"])
        self.SpatialGate = SpatialGate(options["kernel"], options["norm"], options["double"])

    def forward(self, x):
        return self.SpatialGate(self.ChannelGate(x))


class MHSA(nn.Module):
    def __init__(self, channels, height, width, heads, position):
        super().__init__()
        self.heads, self.position = heads, position
        self.query, self.key, self.value = (nn.Conv2d(channels, channels, 1, bias=False) for _ in range(3))
        d = channels // heads
        if position == "relative":
            self.rel_height = nn.Parameter(torch.randn(2 * height - 1, d) * d**-0.5)
            self.rel_width = nn.Parameter(torch.randn(2 * width - 1, d) * d**-0.5)
        elif position == "absolute":
            self.abs_height = nn.Parameter(torch.randn(height, d) * d**-0.5)
            self.abs_width = nn.Parameter(torch.randn(width, d) * d**-0.5)

    def forward(self, x):
        n, c, h, w = x.shape
        d = c // self.heads
        q, k, v = (f(x).view(n, self.heads, d, h * w).transpose(2, 3) for f in (self.query, self.key, self.value))
        logits = q @ k.transpose(2, 3)
        place = [(y, x) for y in range(h) for x in range(w)]
        if self.position == "relative":
            # One vector for every pair of positions: slow, and hard to get wrong.
            pairs = [
                [self.rel_height[y2 - y1 + h - 1] + self.rel_width[x2 - x1 + w - 1] for y2, x2 in place]
                for y1, x1 in place
            ]
            r = torch.stack([torch.stack(row) for row in pairs])
            logits = logits + torch.einsum("nhid,ijd->nhij", q, r)
        elif self.position == "absolute":
            r = torch.stack([self.abs_height[y] + self.abs_width[x] for y, x in place])
            logits = logits + q @ r.T
        y = torch.softmax(logits / d**0.5, dim=-1) @ v
        return y.transpose(2, 3).reshape(n, c, h, w)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs, planes, stride, size, options, attend):
        super().__init__()
        norm = options["norm"]
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = norm(planes)
        if attend:
            self.mhsa = MHSA(planes, *(-(-s // stride) for s in size), options["heads"], options["position"])
        else:
            self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = norm(planes)
        self.cbam = CBAM(planes, options) if options["cbam"] and options["placement"] == "block" else None
        self.downsample = None
        if stride != 1 or inputs != planes:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, planes, 1, stride, bias=False), norm(planes))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.mhsa(y) if hasattr(self, "mhsa") else self.conv2(y))
        y = y if self.cbam is None else self.cbam(y)
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs, planes, stride, size, options, attend):
        super().__init__()
        norm = options["norm"]
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = norm(planes)
        if attend:
            self.mhsa = MHSA(planes, *size, options["heads"], options["position"])
            self.pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False) if stride == 2 else nn.Identity()
        else:
            self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = norm(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = norm(4 * planes)
        self.cbam = CBAM(4 * planes, options) if options["cbam"] and options["placement"] == "block" else None
        self.downsample = None
        if stride != 1 or inputs != 4 * planes:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, 4 * planes, 1, stride, bias=False), norm(4 * planes))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.pool(self.mhsa(y)) if hasattr(self, "mhsa") else self.conv2(y)
        y = self.bn3(self.conv3(F.relu(self.bn2(y))))
        y = y if self.cbam is None else self.cbam(y)
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Stage(nn.Sequential):
    """Blocks 0, 1, ..., and a module named cbam at the end where gates are placed after stages."""


class Twin(nn.Module):
    """Takes images (B, 3, H, W) in [0, 1], normalises them, gives logits (B, K)."""

    def __init__(
        self, body="resnet18", cbam=True, mhsa=True, *, classes=8, size=(224, 224), width=64, norm="batch",
        reduction=16, kernel=7, placement="block", double=False, heads=4, position="relative",
    ):  # fmt: skip
        super().__init__()
        block = Bottleneck if body == "resnet50" else BasicBlock
        layer = nn.BatchNorm2d if norm == "batch" else lambda c: nn.GroupNorm(max(c // 16, 1), c)
        options = {
            "norm": layer, "cbam": cbam, "reduction": reduction, "kernel": kernel, "placement": placement,
            "double": double, "heads": heads, "position": position,
        }  # fmt: skip
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = layer(width)
        size, inputs = [-(-s // 4) for s in size], width
        for i, blocks in enumerate(LAYERS[body]):
            stage, planes = Stage(), width * 2**i
            for j in range(blocks):
                stride = 2 if i > 0 and j == 0 else 1
                stage.add_module(str(j), block(inputs, planes, stride, size, options, mhsa and i == 3))
                size, inputs = [-(-s // stride) for s in size], planes * block.expansion
            if cbam and placement == "stage":
                stage.add_module("cbam", CBAM(inputs, options))
            self.add_module(f"layer{i + 1}", stage)
        self.fc = nn.Linear(inputs, classes)
        self.register_buffer("shift", torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64), persistent=False)
        self.register_buffer("spread", torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64), persistent=False)

    def forward(self, x):
        x = (x - self.shift.to(x)[:, None, None]) / self.spread.to(x)[:, None, None]
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))
