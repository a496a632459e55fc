"""A small one-stage detector: where on a canvas of 32 x 32 pixels lies a handwritten digit, and which one is it.

Digits are scikit-learn's (1797 of them, 30 % held back), drawn once or twice as large at a random place, among noise.
The network has what makes detectors hard to cut: blocks that split, keep and join their channels, and a map of features
that is enlarged and joined with an earlier one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import modelpress as mp

BATCH, CANVAS, STRIDE = 64, 32, 4
CELLS = CANVAS // STRIDE


class Conv(nn.Sequential):
    """Convolution, norm, activation."""

    def __init__(self, before: int, after: int, size: int = 3, stride: int = 1) -> None:
        convolution = nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(after), nn.SiLU())


class SplitBlock(nn.Module):
    """Half of the channels pass by, half go through two convolutions; both are joined (C2f, CSPNet)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before = Conv(width, width, 1)
        self.inner = nn.Sequential(Conv(width // 2, width // 2), Conv(width // 2, width // 2))
        self.after = Conv(width + width // 2, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept, changed = self.before(x).chunk(2, 1)
        return self.after(torch.cat([kept, changed, changed + self.inner(changed)], 1))


class Detector(nn.Module):
    """Images (batch, 1, 32, 32) -> (batch, 8, 8, 13): for each cell whether a digit's centre is in it (a logit), its
    offset from the cell's corner in cells (2), and the logits of the ten digits."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = Conv(1, width, stride=2)
        self.fine = nn.Sequential(Conv(width, 2 * width, stride=2), SplitBlock(2 * width))
        self.coarse = nn.Sequential(Conv(2 * width, 4 * width, stride=2), SplitBlock(4 * width))
        self.join = Conv(6 * width, 2 * width, 1)
        self.mix = SplitBlock(2 * width)
        self.place = nn.Conv2d(2 * width, 3, 1)
        self.digit = nn.Sequential(Conv(2 * width, 2 * width), nn.Conv2d(2 * width, 10, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.fine(self.stem(x))
        coarse = F.interpolate(self.coarse(fine), scale_factor=2.0)
        x = self.mix(self.join(torch.cat([fine, coarse], 1)))
        return torch.cat([self.place(x), self.digit(x)], 1).permute(0, 2, 3, 1)


def scenes(seed: int, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Canvases (n, 1, 32, 32) with one digit each, and the digits' centres (n, 2) in pixels, row before column."""
    draw = torch.Generator().manual_seed(seed)
    canvases = 0.2 * torch.rand(len(images), 1, CANVAS, CANVAS, generator=draw)
    centres = torch.zeros(len(images), 2)
    for number, image in enumerate(images):
        scale = 1 + int(torch.randint(2, (1,), generator=draw))
        drawn = F.interpolate(image[None], scale_factor=float(scale))[0, 0]
        row, column = torch.randint(CANVAS - 8 * scale + 1, (2,), generator=draw).tolist()
        place = canvases[number, 0, row : row + 8 * scale, column : column + 8 * scale]
        place.copy_(torch.maximum(place, drawn))
        centres[number] = torch.tensor([row + 4.0 * scale, column + 4.0 * scale])
    return canvases, centres


def loss(outputs: torch.Tensor, centres: torch.Tensor, digits: torch.Tensor) -> torch.Tensor:
    """Where, how far from the cell's corner, and what; the last two of the cell that has the centre."""
    cells = (centres / STRIDE).clamp(max=CELLS - 1e-3)
    corner = cells.long()
    each = torch.arange(len(outputs))
    there = torch.zeros(outputs.shape[:3], device=outputs.device)
    there[each, corner[:, 0], corner[:, 1]] = 1.0
    found = outputs[each, corner[:, 0], corner[:, 1]]
    where = F.binary_cross_entropy_with_logits(outputs[..., 0], there, pos_weight=torch.tensor(8.0)) * 4
    return where + F.l1_loss(found[:, 1:3], cells - corner) + F.cross_entropy(found[:, 3:], digits)


def found_rightly(model: nn.Module, images: torch.Tensor, centres: torch.Tensor, digits: torch.Tensor) -> float:
    """Share of the images whose surest cell names the digit, and its centre to within two pixels."""
    model.eval()
    with torch.no_grad():
        outputs = model(images).reshape(len(images), CELLS * CELLS, 13)
    surest = outputs[..., 0].argmax(1)
    best = outputs[torch.arange(len(images)), surest]
    corner = torch.stack([surest // CELLS, surest % CELLS], 1)
    near = ((corner + best[:, 1:3]) * STRIDE - centres).norm(dim=1) <= 2.0
    return (near & (best[:, 3:].argmax(1) == digits)).float().mean().item()


def create(width: int = 32, epochs: int = 12, train: bool = True) -> mp.Subject:
    """The dense model and how to train and score it; `train=False` leaves the model untrained."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16.0, labels, test_size=0.3, stratify=labels, random_state=0)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32).reshape(-1, 1, 8, 8) for part in split[:2])
    train_y, test_y = (torch.tensor(part, dtype=torch.long) for part in split[2:])
    test_x, test_at = scenes(1, test_x)
    train_x, train_at = scenes(2, train_x)

    def training_step(batch, model):
        images, centres, digits = batch
        return loss(model(images), centres, digits)

    def training_func(model, optimizer, training_step, lr_scheduler, max_steps, max_epochs):
        steps = 0
        for _ in range(max_epochs or 1_000_000):
            model.train()
            order = torch.randperm(len(train_x))
            for start in range(0, len(order), BATCH):
                if max_steps is not None and steps >= max_steps:
                    return
                index = order[start : start + BATCH]
                optimizer.zero_grad()
                training_step((train_x[index], train_at[index], train_y[index]), model).backward()
                optimizer.step()
                steps += 1
            if lr_scheduler is not None:
                lr_scheduler.step()

    model = Detector(width)
    if train:
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        training_func(model, optimizer, training_step, schedule, None, epochs)

    evaluator = mp.TorchEvaluator(
        training_func,
        mp.trace(torch.optim.AdamW)(model.parameters(), lr=1e-3),
        training_step,
        dummy_input=test_x[:1],
        evaluating_func=lambda model: found_rightly(model, test_x, test_at, test_y),
    )
    return mp.Subject(model, evaluator, example_inputs=test_x[:1])
