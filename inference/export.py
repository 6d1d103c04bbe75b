"""--phase export: the layers of the mask as an ONNX file that runs without this project."""
import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from config import Config
from inference.soft_masks import FLIPS, as_conditioning, clears_background
from runtime import targets
from runtime.files import atomic_write, remove_temporary
from runtime.lock import locked
from utils import UserError

MAX_DIFFERENCE = 1e-4  # of a soft mask in [0, 1] between onnxruntime and torch
OPSET = 18
TEST_SHAPES = ((1, 1, 1), (3, 1, 1), (2, 1.5, 0.75))  # batch, factors of height and width


class Predictor(Protocol):  # what is used of a predict.Predictor
    network: nn.Module
    rule: str
    exponent: float
    stage1: 'Predictor | None'
    files: list[Path]


class MaskOnly(nn.Module):
    """Images B×img_ch×H×W in [-1, 1] to the soft masks B×1×H×W in [0, 1] of soft_masks.outputs,
    averaged over flips as --tta says. The published stage 2 also takes the stage-1 soft mask
    B×1×H×W in [-1, 1]."""

    def __init__(self, network: nn.Module, config: Config) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).cpu().to(memory_format=torch.contiguous_format).eval()
        if config.method == 'localizer':  # tracing needs the number of views as a plain value
            any_orientation = bool(self.network.any_orientation)
            del self.network.any_orientation
            self.network.any_orientation = any_orientation
        self.config = config

    def forward(self, image: Tensor, conditioning: Tensor | None = None) -> Tensor:
        inputs = [image] if conditioning is None else [
            image, as_conditioning(conditioning, self.config.img_ch)]
        # all flips as one batch: exporting a call for each takes a multiple of the time
        flips = ((), *FLIPS[self.config.tta])
        views = [torch.cat([part.flip(axes) if axes else part for axes in flips])
                 for part in inputs]
        masks = self.network.predict_mask(*views).mask.unflatten(0, (len(flips), -1))
        mask = torch.stack([masks[number].flip(axes) if axes else masks[number]
                            for number, axes in enumerate(flips)]).mean(0)
        if clears_background(self.config):
            darkest = image.amin((1, 2, 3), keepdim=True)
            mask = mask.masked_fill(image.amax(1, keepdim=True) == darkest, 0)
        return mask


def run(config: Config, predictor: Predictor) -> int:
    """Write the predictor's network to --output; returns the exit code. Raises UserError, and
    OSError where onnxruntime computes other masks than torch: an earlier file then stays."""
    check_libraries()
    with locked(target_file(config, predictor.files), '--output'):
        return export(config, predictor, target_file(config, predictor.files))


def target_file(config: Config, sources: Iterable[Path] = ()) -> Path:
    """The file to write; raises UserError where it must not be replaced, or is one of `sources`."""
    target = Path(config.output or config.result_folder / f'{config.dataset}.onnx')
    if target.suffix.lower() != '.onnx':
        raise UserError(f'--output {target}: has to end in .onnx')
    targets.check([target], sources, f'--output {target}', config.overwrite)
    return target


def export(config: Config, predictor: Predictor, target: Path) -> int:
    """As `run`, of a file that may be written."""
    remove_temporary(target.parent, [target.name])
    network = MaskOnly(predictor.network, config)
    names = ['image', 'conditioning'] if predictor.stage1 else ['image']
    # full generators fix the size; padding of pretrained encoders depends on it
    any_size = (config.encoder == 'none' if config.method == 'student'
                else config.light or config.method == 'localizer')
    with atomic_write(target) as temporary:
        write(network, temporary, names, any_size, metadata(config, predictor))
        difference = compare(network, temporary, names, any_size)
        if not difference <= MAX_DIFFERENCE:
            raise OSError(f'{target}: not written, since its masks differ from those of torch by '
                          f'{difference:.1e}, more than {MAX_DIFFERENCE:g}')
    sizes = f'{config.size[0]}×{config.size[1]} px' + ' and any other multiples of 4' * any_size
    print(f'{target}: {target.stat().st_size / 1e6:.1f} MB, for images of {sizes}, any number at a '
          f'time; input {" and ".join(names)}, output mask; within {difference:.0e} of torch '
          f'({MAX_DIFFERENCE:g} allowed)')
    if predictor.rule != 'threshold':
        print(f'its post-processing here is {predictor.rule}, which is not part of the file')
    return 0


def metadata(config: Config, predictor: Predictor) -> dict[str, str]:
    """What a program has to know to use the file, by the keys that docs/prediction.md explains."""
    height, width = config.size
    about = {'height': height, 'width': width, 'color': 'RGB' if config.img_ch == 3 else 'L',
             'mean': 127.5, 'std': 127.5, 'class': 'lesion', 'postprocess': predictor.rule}
    if predictor.rule == 'threshold':
        about['threshold'] = 0.5
    if predictor.rule == 'crf':
        about['crf_t'] = predictor.exponent
    if config.clear_corners:
        about['clear_corners'] = True
    return {name: str(value) for name, value in about.items()}


def check_libraries() -> None:
    """Raises UserError where packages are missing."""
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        try:
            __import__(name)
        except ImportError:
            raise UserError(f'--phase export: the package {name} is missing; pip install {name}'
                            ) from None


def examples(config: Config, names: list[str], batch: int, height: int, width: int) -> list[Tensor]:
    """Noise in [-1, 1], B×channels×H×W, for each input."""
    rng = np.random.default_rng(0)
    channels = {'image': config.img_ch, 'conditioning': 1}
    return [torch.from_numpy(rng.uniform(-1, 1, (batch, channels[name], height, width))
                             .astype(np.float32)) for name in names]


def write(network: MaskOnly, path: Path, names: list[str], any_size: bool,
          about: dict[str, str]) -> None:
    """One ONNX file with these inputs, of any batch size and, if `any_size`, height and width, and
    with `about` as metadata."""
    dynamic = dict.fromkeys((0, 2, 3) if any_size else (0,), torch.export.Dim.DYNAMIC)
    inputs = examples(network.config, names, 2, *network.config.size)
    for name in ('torch.onnx', 'onnxscript'):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # pages of progress
        warnings.simplefilter('ignore')
        program = torch.onnx.export(
            network, tuple(inputs), dynamo=True, input_names=names, output_names=['mask'],
            dynamic_shapes=tuple(dynamic for _ in names), opset_version=OPSET, verbose=False)
        program.model.metadata_props.update(about)
        program.save(str(path), external_data=False)


def compare(network: MaskOnly, path: Path, names: list[str], any_size: bool) -> float:
    """The largest difference of masks between onnxruntime and torch, over batch and image sizes."""
    import onnxruntime
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    largest = 0.0
    for batch, *factors in TEST_SHAPES:
        if not any_size and factors != [1, 1]:
            continue
        size = (max(32, round(length * factor / 4) * 4)
                for length, factor in zip(network.config.size, factors, strict=True))
        inputs = examples(network.config, names, batch, *size)
        with torch.inference_mode():
            expected = network(*inputs).numpy()
        mask, = session.run(None, {name: values.numpy()
                                   for name, values in zip(names, inputs, strict=True)})
        largest = max(largest, float(np.abs(mask - expected).max()))
    return largest
