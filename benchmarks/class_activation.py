"""Class activation maps of two classifiers that learned from image labels, and how well each tells
diseased from normal images: the localizer trained as a plain one, and a pretrained encoder."""
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import checkpoint as checkpoints
import dataset
from config import Config
from inference.postprocess import resize_map, to_bytes
from inference.soft_masks import FLIPS, to_array
from networks import PretrainedEncoder, pool_logits
from predict import Predictor
from stages.augmentation import BatchRandom, color_jitter, random_affine
from utils import pick_device, random_generator, rescale_to_unit, set_seed

STRIDES = (16, 32)  # px, of the features that a map is made of
ENCODER_RATE, HEAD_RATE = 3e-4, 1e-3  # of learning
BATCH = {'batch_size': 8, 'normal_batch': 8}  # images of each folder in an iteration


# ----------------------------------------------------------------------------- plain classifier

def logit_maps(checkpoint: Path, paths: list[Path]) -> Iterator[np.ndarray]:
    """Logits h×w of a localizer for each image, stretched to [0, 1] by their own range."""
    predictor = Predictor(checkpoint, 'cpu')
    for batch in dataset.image_batches(paths, predictor.config, 1):
        with torch.inference_mode():
            yield rescale_to_unit(predictor.network(batch['image'])[0, 0].numpy())


def pooled_logits(checkpoint: Path, paths: list[Path]) -> list[float]:
    """The pooled logit of a localizer for each image, over all views of it."""
    predictor = Predictor(checkpoint, 'cpu')
    with torch.inference_mode():
        return [float(pool_logits(predictor.network.logits_over_views(batch['image'])))
                for batch in dataset.image_batches(paths, predictor.config, 1)]


# ---------------------------------------------------------------------------- pretrained encoder

class PretrainedClassifier(nn.Module):
    """The encoder of our student, average pooling, and one linear layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = PretrainedEncoder(config)
        self.output = nn.Linear(self.encoder.channels[-1], 1)

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Images B×img_ch×H×W in [-1, 1] to logits of disease, B, and the encoder's features
        B×C×h×w at STRIDES."""
        features = self.encoder(image)
        chosen = [feature for feature in features
                  if round(image.shape[-1] / feature.shape[-1]) in STRIDES]
        return self.output(features[-1].mean((2, 3)))[:, 0], chosen


def layer_cam(logit: Tensor, features: list[Tensor], size: tuple[int, int]) -> Tensor:
    """The map B×1×H×W in [0, 1] of logits B: LayerCAM (Jiang et al. 2021) of each of the features
    B×C×h×w, ReLU(Σ over channels of ReLU(gradient)·feature), divided by its maximum, enlarged to
    `size` (height, width), and averaged."""
    maps = []
    for feature, gradient in zip(features, torch.autograd.grad(logit.sum(), features),
                                 strict=True):
        activation = (gradient.relu() * feature.detach()).sum(1, keepdim=True).relu()
        activation = activation / activation.amax((2, 3), keepdim=True).clamp(min=1e-12)
        maps.append(F.interpolate(activation, size=size, mode='bilinear', align_corners=False))
    return torch.stack(maps).mean(0)


def train_classifier(config: Config, device: torch.device) -> PretrainedClassifier:
    """Cross entropy on trainA and trainB, AdamW, rates that fall along a cosine; images are changed
    in pose and color as for the student."""
    set_seed(config.seed)
    network = PretrainedClassifier(config)
    network.encoder.load_pretrained(config)
    network.to(device).train()
    optimizer = torch.optim.AdamW([
        {'params': network.encoder.parameters(), 'lr': ENCODER_RATE},
        {'params': network.output.parameters(), 'lr': HEAD_RATE}])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.iteration)
    batches = dataset.training_batches(dataset.training_images(config.data_folder), config, 0,
                                       dataset.ImageStore(config, config.size))
    for iteration, batch in enumerate(batches, 1):
        image = torch.cat([batch['A'], batch['B']])
        is_diseased = torch.cat([torch.ones(len(batch['A'])), torch.zeros(len(batch['B']))])
        random = BatchRandom(random_generator(config.seed, iteration), len(image))
        image = color_jitter(random_affine(image, random, config.rotate), random)
        logit, _ = network(image.to(device))
        loss = F.binary_cross_entropy_with_logits(logit, is_diseased.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if iteration % config.print_freq == 0 or iteration == config.iteration:
            print(f'classifier: iteration {iteration}, loss {loss.item():.3f}', flush=True)
    return network


class PretrainedCAM:
    """The maps and logits of a PretrainedClassifier, which is trained unless its file is there.
    Both are averaged over the image and its flips, as our masks are (--tta)."""

    def __init__(self, file: Path, config: Config) -> None:
        self.config, self.device = config, pick_device(config.device)
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            checkpoints.write(train_classifier(config, self.device).state_dict(), file)
        self.network = PretrainedClassifier(config)
        self.network.load_state_dict(torch.load(file, 'cpu', weights_only=True))
        self.network.to(self.device).eval()

    def _views(self, path: Path) -> Iterator[tuple[tuple[int, ...], Tensor, list[Tensor]]]:
        """Reversed axes, logit and features of an image and of each of its flips."""
        batch, = dataset.image_batches([path], self.config, 1)
        for axes in ((), *FLIPS[self.config.tta]):
            yield axes, *self.network(batch['image'].flip(axes).to(self.device))

    def maps(self, paths: list[Path]) -> Iterator[np.ndarray]:
        """The map H×W in [0, 1] of each image, at the network's size."""
        for path in paths:
            views = [layer_cam(logit, features, self.config.size).flip(axes)
                     for axes, logit, features in self._views(path)]
            yield to_array(torch.stack(views).mean(0)[0, 0])

    @torch.inference_mode()
    def logits(self, paths: list[Path]) -> list[float]:
        """The logit of disease of each image."""
        return [float(np.mean([float(logit) for _, logit, _ in self._views(path)]))
                for path in paths]


# -------------------------------------------------------------------------------- for both

def in_own_size(maps: Iterator[np.ndarray], images: list[np.ndarray]) -> list[np.ndarray]:
    """Maps in [0, 1] as soft masks H×W uint8 of the size of their images H×W×3."""
    return [to_bytes(resize_map(soft, image.shape[1::-1]))
            for soft, image in zip(maps, images, strict=True)]
