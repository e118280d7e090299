"""The registered base architectures: the CIFAR-sized networks of the papers, from torchvision's and timm's parts.

Each factory takes `num_classes` and returns a plain `nn.Module` for 32 x 32 RGB images.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import mobilenetv2, resnet, vgg


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, 1x1 convolved where the shape changes (He et al. 2016, option B)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + shortcut)


class CifarResNet(nn.Module):
    """ResNet-(6 b + 2) for CIFAR: three stages of b blocks, 16, 32 and 64 channels (He et al. 2016, section 4.2)."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        inputs = 16
        for stage, width in enumerate((16, 32, 64), start=1):
            layers = []
            for i in range(blocks):
                layers.append(_BasicBlock(inputs, width, 2 if stage > 1 and i == 0 else 1))
                inputs = width
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 3, 32, 32) to logits (n, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def resnet20(num_classes: int) -> nn.Module:
    """ResNet-20 for CIFAR (He et al. 2016)."""
    return CifarResNet(3, num_classes)


def resnet56(num_classes: int) -> nn.Module:
    """ResNet-56 for CIFAR (He et al. 2016), LcP's network."""
    return CifarResNet(9, num_classes)


def resnet18(num_classes: int) -> nn.Module:
    """torchvision's ResNet-18 with a 3x3 stem of stride 1 and no max pooling, as usual on CIFAR."""
    model = resnet.resnet18(num_classes=num_classes)
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    model.maxpool = nn.Identity()
    return model


def resnet18_conv_shortcuts(num_classes: int) -> nn.Module:
    """`resnet18` with a 1x1 convolution on every shortcut (STAMP, appendix): no two blocks share a channel set."""
    model = resnet18(num_classes)
    for module in model.modules():
        if isinstance(module, resnet.BasicBlock) and module.downsample is None:
            width = module.conv1.in_channels
            module.downsample = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))
    return model


class _CifarVGG(nn.Module):
    def __init__(self, cfg: str, num_classes: int, divisor: int = 1) -> None:
        super().__init__()
        # torchvision's configurations end in a max pool, which brings 32 px to 1 x 1 after five stages.
        widths = [width if isinstance(width, str) else width // divisor for width in vgg.cfgs[cfg]]
        self.features = vgg.make_layers(widths, batch_norm=True)
        self.classifier = nn.Linear(512 // divisor, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def vgg13(num_classes: int) -> nn.Module:
    """VGG-13 with BN and one linear layer (LcP)."""
    return _CifarVGG("B", num_classes)


def vgg_narrow(num_classes: int) -> nn.Module:
    """`vgg13` with a quarter of the channels, on which STAMP meta-trains in minutes without a GPU."""
    return _CifarVGG("B", num_classes, divisor=4)


def vgg16(num_classes: int) -> nn.Module:
    """VGG-16 with BN and one linear layer (the meta-pruning proposal)."""
    return _CifarVGG("D", num_classes)


def vgg19(num_classes: int) -> nn.Module:
    """VGG-19 with BN, 16 convolutions and one linear layer (STAMP)."""
    return _CifarVGG("E", num_classes)


def mobilenet_v2(num_classes: int) -> nn.Module:
    """MobileNetV2, stem and stages 2 and 4 at stride 1 (LcP's CIFAR variant): 265.69M MACs, 8 x 8 at the end."""
    stages = [
        [1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 1], [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1],
    ]  # fmt: skip
    model = mobilenetv2.MobileNetV2(num_classes=num_classes, inverted_residual_setting=stages)
    model.features[0][0].stride = (1, 1)
    return model


def vit_small_32(num_classes: int) -> nn.Module:
    """A ViT for 32 px: patch 4, width 192, 6 blocks of 6 heads."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=32, patch_size=4, embed_dim=192, depth=6, num_heads=6, num_classes=num_classes, drop_path_rate=0.0
    )


REGISTERED = {
    "resnet18": resnet18,
    "resnet18_conv_shortcuts": resnet18_conv_shortcuts,
    "resnet20": resnet20,
    "resnet56": resnet56,
    "vgg13": vgg13,
    "vgg_narrow": vgg_narrow,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "mobilenet_v2": mobilenet_v2,
    "vit_small_32": vit_small_32,
}
