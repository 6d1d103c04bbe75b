"""--phase export: the layers of the mask as an ONNX file that runs without this project."""
import contextlib
import copy
import io
import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from masks import as_companion, average_over_flips
from utils import UserError, make_folder

MOST_DIFFERENCE = 1e-4  # of a mask in [0, 1] between onnxruntime and torch
OPSET = 18
TRIED = ((1, 1, 1), (3, 1, 1), (2, 1.5, 0.75))  # batch, factors of height and width


class MaskOnly(nn.Module):
    """Pictures B×img_ch×H×W in [-1, 1] to soft masks B×1×H×W in [0, 1], averaged over flips where
    the settings say so. Stage 2 as published takes the stage-1 mask B×1×H×W in [-1, 1], too."""

    def __init__(self, network: nn.Module, settings):
        super().__init__()
        self.network = copy.deepcopy(network).cpu().to(memory_format=torch.contiguous_format).eval()
        if settings.scheme == 'locator':  # how many views there are has to be known when it is traced
            no_side_is_up = bool(self.network.no_side_is_up)
            del self.network.no_side_is_up
            self.network.no_side_is_up = no_side_is_up
        self.settings = settings

    def forward(self, image: Tensor, stage_1_mask: Tensor | None = None) -> Tensor:
        inputs = [image]
        if stage_1_mask is not None:
            inputs.append(as_companion(stage_1_mask, self.settings.img_ch))
        mask = self.network.predict_mask(*inputs).mask
        if self.settings.flips:
            mask = average_over_flips(self.network, inputs, mask, self.settings.no_side_is_up)
        return mask


def run(settings, segmenter) -> int:
    """Write the network of a predict.Segmenter to --output, if onnxruntime makes the masks of it that
    torch makes; the exit code. Raises UserError."""
    target = Path(settings.output or settings.result_folder / f'{settings.dataset}.onnx')
    if target.suffix != '.onnx':
        raise UserError(f'--output {target}: has to end in .onnx')
    check_libraries()
    make_folder(target.parent, '--output')
    network = MaskOnly(segmenter.network, settings)
    names = ['image', 'stage_1_mask'][:1 + (segmenter.before is not None)]
    free = settings.light or settings.scheme != 'published'  # a full generator fixes the size
    temporary = target.with_name(f'.{target.name}')
    try:
        write(network, temporary, names, free)
        worst = compare(network, temporary, names, free)
        if not worst <= MOST_DIFFERENCE:
            raise OSError(f'{target}: not written, since its masks differ from those of torch by '
                          f'{worst:.1e}, more than {MOST_DIFFERENCE:g}')
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    size = '×'.join(map(str, settings.size))
    print(f'{target}: {target.stat().st_size / 1e6:.1f} MB, for pictures of {size} px'
          + (' and any other multiples of 4' if free else '') + f', any number at a time; input '
          f'{" and ".join(names)}, output mask; within {worst:.0e} of torch ({MOST_DIFFERENCE:g} asked)')
    if segmenter.rule != 'threshold':
        print(f'its post-processing here is {segmenter.rule}, which is not part of the file')
    return 0


def check_libraries() -> None:
    """Raises UserError where this torch cannot write such files, or packages are missing."""
    if tuple(int(part) for part in torch.__version__.split('.')[:2]) < (2, 6):
        raise UserError(f'--phase export: needs torch 2.6 or newer, and this is {torch.__version__}; '
                        'pip install --upgrade torch torchvision')
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        try:
            __import__(name)
        except ImportError:
            raise UserError(f'--phase export: the package {name} is missing; pip install {name}'
                            ) from None


def examples(settings, names: list[str], batch: int, height: int, width: int) -> list[Tensor]:
    """Noise for each input, in [-1, 1]."""
    rng = np.random.default_rng(0)
    channels = {'image': settings.img_ch, 'stage_1_mask': 1}
    return [torch.from_numpy(rng.uniform(-1, 1, (batch, channels[name], height, width))
                             .astype(np.float32)) for name in names]


def write(network: MaskOnly, path: Path, names: list[str], free: bool) -> None:
    """One ONNX file, of any batch and, if `free`, height and width."""
    sizes = {axis: torch.export.Dim.DYNAMIC for axis in ((0, 2, 3) if free else (0,))}
    inputs = examples(network.settings, names, 2, *network.settings.size)
    for name in ('torch.onnx', 'onnxscript'):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # pages of progress
        warnings.simplefilter('ignore')
        torch.onnx.export(network, tuple(inputs), str(path), dynamo=True, input_names=names,
                          output_names=['mask'], dynamic_shapes=tuple(sizes for _ in names),
                          opset_version=OPSET, external_data=False, verbose=False)


def compare(network: MaskOnly, path: Path, names: list[str], free: bool) -> float:
    """The largest difference of masks between onnxruntime and torch, over batches and sizes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    worst = 0.0
    height, width = network.settings.size
    for batch, tall, wide in TRIED:
        if not free and (tall, wide) != (1, 1):
            continue
        inputs = examples(network.settings, names, batch, *(
            max(32, round(side * factor / 4) * 4) for side, factor in ((height, tall), (width, wide))))
        with torch.inference_mode():
            expected = network(*inputs).numpy()
        made, = session.run(None, {name: one.numpy() for name, one in zip(names, inputs)})
        worst = max(worst, float(np.abs(made - expected).max()))
    return worst
