"""How long an iteration of a stage takes, tried on noise: nothing is read or written."""
import time
from dataclasses import replace

import torch

from config import Config
from runtime import distributed
from stages.base import Stage

ITERATIONS = 3  # of which the first, slower one does not count
LONG_SECONDS = 5.0  # after an iteration this long no other is tried


def seconds_per_iteration(stage_class: type[Stage], config: Config,
                          device: torch.device) -> float:
    """Seconds of one iteration, without reading images, scoring and saving. It changes torch's
    global random state."""
    stage = stage_class(replace(config, compile=False), device)
    shards = distributed.world_size() if stage.shards_batches else 1
    counts = {domain: count // shards for domain, count in config.batch_counts.items()}
    batch = {domain: torch.rand(count, config.img_ch, *config.size, device=device) * 2 - 1
             for domain, count in counts.items()}
    height, width = config.size
    if config.stage == 2 or config.trained_by_localizer:
        batch['mask'] = torch.full((counts['A'], 1, height, width), -1.0, device=device)
        batch['mask'][..., height // 4:height // 2, width // 4:width // 2] = 1
    seconds = []
    for iteration in range(ITERATIONS):
        began = time.monotonic()
        float(stage.step(batch, iteration).mask_share)  # a GPU is waited for
        seconds.append(time.monotonic() - began)
        if distributed.from_main(lambda: seconds[-1] > LONG_SECONDS):
            break
    return min(seconds)
