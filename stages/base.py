"""What a stage is: the contract between the Trainer and everything that it trains.

To write a new stage, fill in a subclass of Stage and name it in STAGES of trainer.py. The Trainer
builds the stage, may load a checkpoint into it, calls `step` once an iteration, and asks for
`visuals` now and then. A stage writes no files and knows nothing of epochs, logs or validation."""
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from config import MASK_NETWORK, Config
from networks import build_networks, make_ready


class StepResult(NamedTuple):
    """What a stage says of one iteration. Scalars, detached, on any device."""

    losses: dict[str, Tensor]  # the weighted losses, of exactly the names in `loss_names`
    mask_share: Tensor  # mean mask of the disease images, 0 to 1
    skipped: Tensor  # 1 where the step was skipped since something was not finite, else 0


class Stage(ABC):
    """Networks, their optimizers, and one training step on a batch."""

    # --- declared by each stage
    loss_names: tuple[str, ...]  # columns of losses.csv; `step` returns exactly these
    progress_names: tuple[str, ...]  # those of them that the progress bar shows
    batch_options = ('batch_size',)  # options that are split among processes
    shards_batches = True  # False: each process computes whole batches
    watches_masks = True  # False: masks that become empty or full mean nothing here
    is_scored_without_labels = True  # False: the label-free score cannot choose its checkpoints

    # --- filled in by each stage in __init__
    optimizers: dict[str, torch.optim.Optimizer]  # by name, as a checkpoint keeps them

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.networks: nn.ModuleDict = make_ready(build_networks(config), config, device)

    @abstractmethod
    def step(self, batch: dict[str, Tensor], iteration: int) -> StepResult:
        """One iteration, counted from 0: gradients and optimizer steps.

        `batch` holds A and B, B×img_ch×H×W in [-1, 1] on the device, and where the stage has a
        teacher `mask`, its soft masks of A, B×1×H×W in [-1, 1]."""

    @abstractmethod
    def visuals(self, image: Tensor, mask: Tensor | None = None) -> dict[str, np.ndarray]:
        """The image grid's column of one image 1×img_ch×H×W and the teacher's soft mask 1×1×H×W of
        it, both in [-1, 1]: kind (see visualize.KIND_NAMES) → uint8 H×W×3. Called without
        gradients, in evaluation mode."""

    @property
    def mask_network(self) -> nn.Module:
        """The network that makes the soft masks of disease images."""
        return self.networks[MASK_NETWORK[self.config.method]]

    @staticmethod
    def schedule(progress: float) -> float:
        """Share of --lr at `progress`, 0 to 1, of the run (with --decay_flag). Published: constant,
        then falling linearly to 0 over the second half."""
        return min(1, 2 - 2 * progress)

    @staticmethod
    def sample_size(config: Config) -> tuple[int, int]:
        """(height, width) at which training images are kept in memory, px."""
        return config.size

    def augment_sample(self, image: Image.Image, rng: np.random.Generator,
                       is_mask: bool) -> Image.Image:
        """A training image or mask of `sample_size` as it comes into the batch, of config.size. An
        image and its mask come with equal `rng`. By default unchanged."""
        return image

    def start(self) -> None:
        """Called once before the first iteration of a run that starts from no checkpoint, for
        weights that come from elsewhere. By default nothing."""
        return

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides networks and optimizers; plain numbers."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned; raises KeyError, TypeError or ValueError for others."""
        return

    def final_warning(self) -> str:
        """What a user should know of a finished run; '' if nothing."""
        return ''
