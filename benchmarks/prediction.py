"""Speed of prediction: of the program, of its exported network and of other networks; and what an
exported network of 8-bit integers costs in accuracy.

    python benchmarks/prediction.py OUT.json
    python benchmarks/prediction.py OUT.json --dataset ISIC --data_root DIR --images 1000

Needs the weights in model/ and the test images of the data set; by default the built-in one. All
masks are made without flips (--tta none). On the CPU."""
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
import torchvision
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image

from common import PROJECT, parser_of

# isort: split
import dataset
import published
from config import Config, resolve
from inference import export
from inference.metrics import jaccard
from inference.postprocess import resize_map, to_bytes, to_segmentation
from predict import Predictor, predict_volume
from preparation import nifti, phantom

CALIBRATION = 32  # images that the ranges of 8-bit integers are taken from
MOST_OF_PUBLISHED = 10  # images, since one takes a second
Images = list[np.ndarray]  # H×W×3 uint8
MaskMaker = Callable[[Images], Images]  # to soft masks H×W float32, or to anything of that effort


class CalibrationImages(CalibrationDataReader):
    """Images one by one, as the quantization wants them."""

    def __init__(self, predictor: Predictor, images: Images) -> None:
        self.inputs = ({'image': to_network(predictor, image)} for image in images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.inputs, None)


def to_network(predictor: Predictor, image: np.ndarray) -> np.ndarray:
    """1×3×H×W float32 in [-1, 1] of the network's size."""
    return predictor._stack([Image.fromarray(image)], 3).numpy()


def onnx_files(predictor: Predictor, images: Images, folder: Path) -> dict[str, Path]:
    """The exported network, and its weights (dynamic) or all numbers (static) in 8 bits."""
    paths = {kind: folder / f'{kind}.onnx' for kind in ('float32', 'dynamic int8', 'static int8')}
    prepared = folder / 'prepared.onnx'
    network = export.MaskOnly(predictor.network, predictor.config)
    export.write(network, paths['float32'], ['image'], False)
    quant_pre_process(paths['float32'], prepared, skip_symbolic_shape=True)
    quantize_dynamic(prepared, paths['dynamic int8'])
    quantize_static(prepared, paths['static int8'], CalibrationImages(predictor, images),
                    per_channel=True)
    return paths


def onnx_masks(path: Path, predictor: Predictor) -> MaskMaker:
    """Soft masks of images by a file of ONNX, on as many threads as torch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])

    def masks(images: Images) -> Images:
        return [resize_map(session.run(None, {'image': to_network(predictor, image)})[0][0, 0],
                           image.shape[1::-1]) for image in images]
    return masks


def class_activation(predictor: Predictor) -> MaskMaker:
    """The class activation map of a ResNet-18 with random weights, at the size of our network."""
    network = torchvision.models.resnet18().eval()
    features = torch.nn.Sequential(*list(network.children())[:-2])

    @torch.inference_mode()
    def masks(images: Images) -> Images:
        maps = []
        for image in images:
            values = features(torch.from_numpy(to_network(predictor, image)))
            activation = torch.einsum('bchw,c->bhw', values, network.fc.weight[0])[:, None]
            maps.append(F.interpolate(activation, image.shape[:2], mode='bilinear')[0, 0].numpy())
        return maps
    return masks


def published_generator() -> MaskMaker:
    """The whole published generator at its published size, random weights."""
    config = resolve({'recipe': 'published', 'stage': 1, 'dataset': 'phantom'})
    network = published.build(config)['genA2B'].eval()

    @torch.inference_mode()
    def masks(images: Images) -> Images:
        return [network(dataset.to_tensor(dataset.resize(Image.fromarray(image),
                                                         config.size))[None])['mask'][0, 0].numpy()
                for image in images[:MOST_OF_PUBLISHED]]
    return masks


def seconds(makers: dict[str, MaskMaker], images: Images, rounds: int) -> dict[str, float]:
    """Seconds an image by each, in turns: median over the rounds, after one to warm up."""
    taken = {name: [] for name in makers}
    for _, (name, masks) in itertools.product(range(rounds + 1), makers.items()):
        start = time.perf_counter()
        count = len(masks(images))
        taken[name].append((time.perf_counter() - start) / count)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def volume() -> nifti.Volume:
    """240×240×155 voxels of 1 mm with a head of noise."""
    rng = np.random.default_rng(0)
    grid = np.mgrid[-1:1:240j, -1:1:240j, -1:1:155j]
    head = (grid ** 2).sum(0) < 0.7
    values = np.where(head, rng.normal(100, 10, head.shape), 0).astype(np.float32)
    return nifti.Volume(Path('volume.nii'), nibabel.Nifti1Header(), values, np.eye(4), 0)


def accuracy(masks: MaskMaker, cases: list[dataset.Case], predictor: Predictor) -> float:
    """Mean JA, percent, of the labeled cases, with the predictor's post-processing."""
    config: Config = predictor.config
    scores = []
    for case in filter(lambda case: case.label, cases):
        image = np.asarray(dataset.read_image(case.image))
        mask = to_bytes(masks([image])[0])
        segmentation = to_segmentation(mask, predictor.rule, image, predictor.exponent, config)
        scores.append(jaccard(segmentation, dataset.read_label(case.label)))
    return 100 * float(np.mean(scores))


def main() -> None:
    """Measure, and write what is known after each part."""
    parser = parser_of(__doc__)
    parser.add_argument('out', type=Path)
    parser.add_argument('--dataset', default='phantom')
    parser.add_argument('--data_root', type=Path, default=PROJECT / 'dataset')
    parser.add_argument('--images', type=int, default=1000)
    parser.add_argument('--rounds', type=int, default=7)
    arguments = parser.parse_args()
    data = arguments.data_root / arguments.dataset
    if arguments.dataset == 'phantom' and not data.is_dir():
        phantom.write_phantom(data)
    predictor = Predictor(next((PROJECT / 'model').glob(f'{arguments.dataset}_params_*.pt')),
                          'cpu', tta='none')
    cases = dataset.find_cases(data, 'test')
    images = [np.asarray(dataset.read_image(case.image)) for case in cases]
    results = {'threads': torch.get_num_threads(), 'size': predictor.config.size,
               'rule': predictor.rule}

    def report(**part: object) -> None:
        results.update(part)
        print(json.dumps(part, indent=1), flush=True)
        arguments.out.write_text(json.dumps(results, indent=1) + '\n')

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        training = dataset.list_images(data / 'trainA')[:CALIBRATION]
        files = onnx_files(predictor, [np.asarray(dataset.read_image(path)) for path in training],
                           Path(folder))
        report(**{'export and quantization: s': time.perf_counter() - start,
                  'MB': {kind: path.stat().st_size / 1e6 for kind, path in files.items()}})
        ours = {'soft masks': predictor.probabilities}
        ours |= {f'ONNX {kind}': onnx_masks(path, predictor) for kind, path in files.items()}
        report(JA={name: accuracy(masks, cases, predictor) for name, masks in ours.items()})
        makers = {'predict': predictor.predict, **ours,
                  'ResNet-18 CAM': class_activation(predictor),
                  'published generator': published_generator()}
        report(**{'one image: s': seconds(makers, images[:1], arguments.rounds)})
        many = list(itertools.islice(itertools.cycle(images), arguments.images))
        report(**{'images a second': {name: 1 / taken for name, taken
                                      in seconds(makers, many, 1).items()}})
        start = time.perf_counter()
        predict_volume(predictor, volume())
        report(**{'volume: s': time.perf_counter() - start})


if __name__ == '__main__':
    main()
