"""SimSiam (Chen & He 2021): two views of each image, one loss, no labels; and a k-NN that says what was learned.

Algorithm 1 of the paper with its settings for CIFAR (appendix D); `mvp.pretrain` runs the training.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvp.data import Data
from mvp.plan import make_plan
from mvp.train import Augment, InputSpec, memory_format
from zoo.errors import OptionError

NEIGHBOURS, TEMPERATURE = 200, 0.1
LUMA = (0.299, 0.587, 0.114)


class SimSiam(nn.Module):
    """An encoder with the projector and the predictor that its pre-training needs.

    The projector is the paper's MLP of three linear layers, each followed by batch norm and the first two by a ReLU;
    the predictor has two, narrowed to a quarter in between. The width is the paper's 2048, or 32 times the encoder's
    where that is less, so that a small network is not outweighed by its heads.

    Args:
        model: A classifier; everything but its output layer is the encoder, and that layer stays as it is.
        size: Height and width of its images in pixels.

    Attributes:
        model: The encoder, its output layer replaced by the identity: float images (n, 3, H, W) to features (n, d).
        width: d of the projections.

    Raises:
        OptionError: The output layer is no linear layer.
    """

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self._name = make_plan(model.eval(), (3, *size), verify=False)["head"][0].rpartition(".")[0]
        head = model.get_submodule(self._name)
        if not isinstance(head, nn.Linear):
            raise OptionError("SimSiam", got=f"an output layer {self._name} ({type(head).__name__})", expected="linear")
        self.model, self.head = model, head
        # Not trained here; a parameter of the optimiser without gradient would still decay.
        self.head.requires_grad_(False)
        self._put(nn.Identity())
        self.width = min(2048, 32 * head.in_features)
        layers: list[nn.Module] = []
        for i, inputs in enumerate((head.in_features, self.width, self.width)):
            layers += [nn.Linear(inputs, self.width, bias=False), nn.BatchNorm1d(self.width, affine=i < 2)]
            layers += [nn.ReLU()] if i < 2 else []
        self.projector = nn.Sequential(*layers)
        narrow = self.width // 4
        self.predictor = nn.Sequential(
            nn.Linear(self.width, narrow, bias=False), nn.BatchNorm1d(narrow), nn.ReLU(), nn.Linear(narrow, self.width)
        )

    def _put(self, module: nn.Module) -> None:
        parent, _, leaf = self._name.rpartition(".")
        self.model.get_submodule(parent)._modules[leaf] = module

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Projections z and predictions p of one view, both (n, width)."""
        z = self.projector(self.model(x))
        return z, self.predictor(z)

    def classifier(self) -> nn.Module:
        """The network with its output layer back in place, as it started; the encoder is no longer one after this."""
        self._put(self.head.requires_grad_(True))
        return self.model


def loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """D(p1, z2) / 2 + D(p2, z1) / 2, D the mean negative cosine; no gradient flows into z (eq. 1-4).

    Args:
        p1: Predictions of the first view, (n, width).
        p2: Predictions of the second.
        z1: Projections of the first.
        z2: Projections of the second.
    """
    first, second = F.cosine_similarity(p1, z2.detach()), F.cosine_similarity(p2, z1.detach())
    return -(first.mean() + second.mean()) / 2


def spread(z: Tensor) -> Tensor:
    """Standard deviation of the l2-normalised outputs over the batch, mean over dimensions, times sqrt(width).

    About 1 for outputs that scatter in all directions, 0 when they have collapsed to one (section 4.1, fig. 2).
    """
    return F.normalize(z.detach().float(), dim=1).std(0).mean() * z.shape[1] ** 0.5


def simsiam_step(learner: SimSiam, optimizer: torch.optim.Optimizer, views: Tensor) -> tuple[Tensor, Tensor]:
    """One optimiser step on two views of each image; the loss and the spread, without waiting for the device.

    Args:
        learner: In training mode; each view has batch statistics of its own.
        optimizer: Over its parameters.
        views: As `two_views` puts them, (2 n, 3, H, W): all first views, then all second ones.
    """
    with torch.autocast(views.device.type, torch.bfloat16, enabled=views.device.type == "cuda"):
        (z1, p1), (z2, p2) = (learner(x) for x in views.chunk(2))
        value = loss(p1.float(), p2.float(), z1.float(), z2.float())
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    optimizer.step()
    return value.detach(), spread(z1)


def two_views(spec: InputSpec) -> Augment:
    """Two random views of every image of a batch, for `mvp.train.batches`.

    For CIFAR (appendix D): a crop of 20% to 100% of the area and an aspect of 3/4 to 4/3, resized back; a flip with
    probability 0.5; with probability 0.8 brightness, contrast and saturation times 0.6 to 1.4 and a hue turned by up to
    a tenth of a circle, in this order; grey with probability 0.2; no blur. The hue turns in the plane of the YIQ
    chrominances, which is one matrix product an image. Drawn per view and image on the CPU, computed on the images'
    device, on pixels clamped to their range.

    Args:
        spec: With which the batch was normalised, and the views are again.

    Returns:
        A function of a batch (n, 3, H, W) and a generator that returns (2 n, 3, H, W).
    """

    def augment(x: Tensor, rng: torch.Generator) -> Tensor:
        mean, std = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (spec.mean, spec.std))
        pixels = torch.cat([x, x]) * std + mean
        draw = torch.rand((11, len(pixels)), generator=rng).to(x.device)
        views = jitter(crop(pixels, draw[:5]), draw[5:])
        return ((views - mean) / std).contiguous(memory_format=memory_format(x.device))

    return augment


def crop(x: Tensor, draw: Tensor) -> Tensor:
    """A random resized crop with a flip of each image.

    Args:
        x: Images (n, 3, H, W).
        draw: Uniform numbers (5, n): area, aspect, row, column, flip.
    """
    area, aspect = 0.2 + 0.8 * draw[0], torch.exp((2 * draw[1] - 1) * math.log(4 / 3))
    # As shares of the image's sides; a crop that would be larger than the image is as large as it.
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    mirror = torch.where(draw[4] < 0.5, -1.0, 1.0)
    zero = torch.zeros_like(area)
    rows = [
        torch.stack([width * mirror, zero, (2 * draw[3] - 1) * (1 - width)], 1),
        torch.stack([zero, height, (2 * draw[2] - 1) * (1 - height)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def jitter(x: Tensor, draw: Tensor) -> Tensor:
    """Random colours of each image.

    Args:
        x: Images (n, 3, H, W), pixels in 0..1.
        draw: Uniform numbers (6, n): whether at all, brightness, contrast, saturation, hue, whether grey.
    """
    bright, contrast, saturation = (0.6 + 0.8 * draw[i].view(-1, 1, 1, 1) for i in (1, 2, 3))
    changed = (x * bright).clamp(0, 1)
    changed = torch.lerp(grey(changed).mean((2, 3), keepdim=True), changed, contrast).clamp(0, 1)
    changed = torch.lerp(grey(changed), changed, saturation).clamp(0, 1)
    changed = torch.einsum("nij,njhw->nihw", hue_turn((2 * draw[4] - 1) * 0.1), changed).clamp(0, 1)
    x = torch.where((draw[0] < 0.8).view(-1, 1, 1, 1), changed, x)
    return torch.where((draw[5] < 0.2).view(-1, 1, 1, 1), grey(x).expand_as(x), x)


def grey(x: Tensor) -> Tensor:
    """The luma of each pixel, (n, 1, H, W)."""
    return torch.einsum("c,nchw->nhw", torch.tensor(LUMA, device=x.device), x).unsqueeze(1)


def hue_turn(turns: Tensor) -> Tensor:
    """RGB matrices (n, 3, 3) that turn the chrominances of YIQ by a share of a circle and leave the luma."""
    yiq = torch.tensor([LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)], device=turns.device)
    angle = turns * (2 * math.pi)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rows = [torch.stack([zero + 1, zero, zero], 1), torch.stack([zero, cos, -sin], 1), torch.stack([zero, sin, cos], 1)]
    return torch.linalg.inv(yiq) @ torch.stack(rows, 1) @ yiq


@torch.no_grad()
def knn_accuracy(
    encode: nn.Module, data: Data, spec: InputSpec, *, device: torch.device, most: int | None = None
) -> float:
    """Test accuracy in 0..1 of a weighted k-NN on the encoder's features (Wu et al. 2018; k 200, temperature 0.1).

    Args:
        encode: Images to features, put into eval mode and back.
        data: Neighbours are training images; a class votes with the sum of exp(cosine / temperature).
        spec: The base's input spec.
        device: Where to compute.
        most: At most so many images of each split, evenly spaced; all when None.
    """

    def features(images: Tensor) -> Tensor:
        parts = [encode(spec(part.to(device))).float() for part in images.split(250)]
        return F.normalize(torch.cat(parts), dim=1)

    was_training = encode.training
    encode.eval()
    (memory, known), (tests, truth) = (
        (features(images[:: _stride(images, most)]), labels[:: _stride(images, most)].to(device))
        for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels))
    )
    encode.train(was_training)
    right = 0
    for part, wanted in zip(tests.split(500), truth.split(500), strict=True):
        near, index = (part @ memory.T).topk(min(NEIGHBOURS, len(memory)), dim=1)
        votes = torch.zeros((len(part), len(data.labels)), device=device)
        votes.scatter_add_(1, known[index], (near / TEMPERATURE).exp())
        right += int((votes.argmax(1) == wanted).sum())
    return right / len(truth)


def _stride(images: Tensor, most: int | None) -> int:
    return 1 if most is None else max(1, math.ceil(len(images) / most))
