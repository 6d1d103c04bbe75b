"""Every option of the program, declared once, and the presets its defaults come from.

Precedence, lowest first: the option's own default, the presets, what a checkpoint was made with,
the flags the user gave. docs/options.md is the table of all options, made from here."""
import math
import os
import sys
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from presets import LENGTHS, PRESETS, PROFILE_OF, PROFILES, TEST_BATCH_SIZE, method_of
from utils import UserError

PROJECT = Path(__file__).resolve().parent
LARGEST_SAVED_SIZE = 2048  # px, that a file may ask for by itself
MAX_DATASET_NAME = 200  # bytes; file names have 255, and add number and ending
PHASES = ('prepare', 'train', 'val', 'test', 'predict', 'evaluate', 'export', 'pseudo_mask')
GENERATORS = ('genA2B', 'genB2A')
DISCRIMINATORS = ('disGA', 'disLA', 'disGB', 'disLB')  # G global, L local; A disease, B normal
NETWORKS = (*GENERATORS, *DISCRIMINATORS)
# student: learns; ema: its moving average; target: the copy of ema that makes pseudo-labels
STUDENT_NETWORKS = ('student', 'ema', 'target')
# by Config.method: the networks it trains, and the one of them that makes the masks
NETWORKS_OF = {'localizer': ('localizer',), 'label_transfer': NETWORKS,
               'label_transfer_refine': NETWORKS, 'student': STUDENT_NETWORKS}
MASK_NETWORK = {'localizer': 'localizer', 'label_transfer': 'genA2B',
                'label_transfer_refine': 'genA2B', 'student': 'ema'}
LOCALIZER, STUDENT = ('localizer',), ('student',)  # methods that an option is of
TRANSFER = ('label_transfer', 'label_transfer_refine')
STAGE_TEXTS = {LOCALIZER: 'stage 0: ', TRANSFER[:1]: 'stage 1: ', STUDENT: 'stage 2: ',
               LOCALIZER + STUDENT: 'stages 0 and 2: '}
DEFAULT_ENCODER = 'tf_efficientnet_lite0'  # its weights are installed with the program

# ---------------------------------------------------------------------------- declaring an option


def option(default: Any, text: str, group: str, *, choices: tuple = (), at_least: float = -math.inf,
           at_most: float = math.inf, above: float = -math.inf, unit: str = '',
           phases: tuple = PHASES, saved: bool = False, architecture: bool = False,
           path: bool = False, own_choice: str = '', synonyms: str = '',
           methods: tuple = ()) -> Any:
    """A field of Config that is also a flag.

    `phases` say where it has an effect, `methods` in which stages (empty: all); `saved` options
    are kept in checkpoints, `architecture` ones also fix shapes of networks; in `path` ones ~ is
    the home folder; `own_choice` describes what an empty value stands for;
    `synonyms` are words, parted by spaces, that people try."""
    return field(default=default, metadata={
        'help': STAGE_TEXTS.get(methods, '') + text, 'group': group, 'choices': choices,
        'at_least': at_least, 'at_most': at_most, 'above': above, 'unit': unit, 'phases': phases,
        'saved': saved or architecture, 'architecture': architecture, 'path': path,
        'own_choice': own_choice, 'synonyms': synonyms.split(), 'methods': methods})


TRAIN = ('train',)
DATA_PHASES = tuple(phase for phase in PHASES if phase != 'evaluate')
NETWORK_PHASES = tuple(phase for phase in DATA_PHASES if phase != 'prepare')
MASK_PHASES = ('train', 'val', 'test', 'predict', 'export', 'pseudo_mask')
SEGMENTING = ('train', 'val', 'test', 'predict')

MAIN, PREPARE, PREDICT = 'main options', 'prepare', 'predict, evaluate and export'
NETS, TRAINING, LOSSES = 'networks', 'training', 'loss weights'
ADVANCED = 'advanced: set by --profile, --recipe and --stage; seldom by hand'
GROUPS = (MAIN, PREPARE, PREDICT, NETS, TRAINING, LOSSES, ADVANCED)

main = partial(option, group=MAIN)
preparing = partial(option, group=PREPARE, phases=('prepare',))
predicting = partial(option, group=PREDICT, phases=('predict',))
shape = partial(option, group=NETS, phases=NETWORK_PHASES, architecture=True)
training = partial(option, group=TRAINING, phases=TRAIN, saved=True)
weight = partial(option, group=LOSSES, phases=TRAIN, saved=True, at_least=0)
advanced = partial(option, group=ADVANCED, saved=True)
outline = partial(advanced, phases=SEGMENTING)
learning = partial(advanced, phases=TRAIN)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything one run is told. Defaults are the published values of the first generation."""

    # main options
    phase: str = main('train', 'prepare: make a data set from downloads; train: train the stages; '
                      'val: choose checkpoint and post-processing on labeled val images; test: '
                      'masks and metrics of testA; predict: masks of any images or volumes; '
                      'evaluate: metrics of any masks against labels; export: write the network as '
                      'ONNX; pseudo_mask: write the soft masks of stage 1', choices=PHASES,
                      synonyms='mode action task train test predict')
    dataset: str = main('phantom', 'name of the data set, a folder in --data_root; "phantom" is '
                        'built in', saved=True, phases=DATA_PHASES,
                        synonyms='data name dataset_name data_name')
    stage: int = main(1, '0: localizer; 1: label transfer; 2: student', choices=(0, 1, 2),
                      phases=NETWORK_PHASES, saved=True, own_choice='train: all in turn; else the '
                      'stage trained last')
    recipe: str = main('ours', 'ours: with localizer, student and refined outlines; published: the '
                       'published method', choices=('ours', 'published'), phases=NETWORK_PHASES,
                       saved=True, synonyms='scheme method')
    profile: str = main('', 'kind of images; sets the advanced options', choices=('', *PROFILES),
                        saved=True, phases=DATA_PHASES, own_choice="by the data set's name: ISIC "
                        "dermoscopy; BraTS and LGG brain_mri; others generic",
                        synonyms='preset modality_profile')
    data_root: str = main(str(PROJECT / 'dataset'), 'folder that holds the data sets',
                          path=True, phases=DATA_PHASES,
                          synonyms='data_dir root datapath data_path image_dir image_path img_dir '
                          'img_path')
    result_dir: str = main('results', 'folder for everything that is written',
                           phases=(*NETWORK_PHASES, 'evaluate'), path=True,
                           synonyms='output_dir save_dir out_dir output_folder outdir save_path')
    checkpoint: tuple = main(
        (), "checkpoint file, ours or the authors', to use or to start training from; val takes "
        "several of one folder", phases=NETWORK_PHASES, own_choice='best.pt of the run, else its '
        'newest, else for stage 1 the newest in model/', path=True,
        synonyms='weights ckpt model pretrained checkpoint_path model_path load')
    resume: bool = main(False, 'continue from the newest checkpoint of the run', phases=TRAIN,
                        synonyms='continue continue_train restart')
    dry_run: bool = main(False, 'check data, memory, disk and permissions, print the plan, then '
                         'stop', phases=TRAIN, synonyms='check')
    quick: bool = main(False, 'all stages at a tenth of their length, to see whether all goes '
                       'well; results are marked', phases=TRAIN, saved=True, synonyms='fast')
    device: str = main('auto', 'auto (cuda, else mps, else cpu), cpu, cuda, cuda:1 or mps',
                       phases=NETWORK_PHASES, synonyms='gpu gpus gpu_id gpu_ids cuda cpu')
    seed: int = main(0, 'seed of initial weights, sampling and augmentation', at_least=0,
                     at_most=2 ** 63, phases=('prepare', 'train'), saved=True,
                     synonyms='random_seed')
    # prepare
    source: tuple = preparing((), 'downloaded folders; for "folders": disease images, normal '
                              'images and, if any, labels', path=True, synonyms='src sources')
    source_format: str = preparing('', 'brats: NIfTI volumes with segmentations; isic: ISIC_*.jpg '
                                   'with ISIC_*_segmentation.png, all of disease; folders: '
                                   'folders of images',
                                   choices=('', 'brats', 'isic', 'folders'), synonyms='format')
    modality: str = preparing('flair', 'brats: MRI sequence to use', phases=('prepare', 'predict'),
                              choices=('flair', 't1', 't1ce', 't2'))
    z_range: str = preparing('', 'brats: axial slices as first-last, or all (slices that show '
                             'enough head)', own_choice='90-120 of volumes of 155 slices; of '
                             'others those at the heights of lesions', synonyms='slices')
    lesion_px: int = preparing(500, 'brats: smallest lesion area of a disease slice', at_least=0,
                               unit='px of the prepared image')
    split: tuple = preparing((), 'disease images of train, val and test: three counts or three '
                             'fractions', own_choice='0.7 0.15 0.15, but the published counts '
                             'where there are enough: brats 563 90 90, isic 200 31 31')
    keep_artifacts: bool = preparing(False, 'isic: keep images with rulers, color patches, or a '
                                     'lesion amid dark corners; folders of dermoscopy images: '
                                     'those of the last kind', synonyms='artifacts')
    overwrite: bool = preparing(False, 'prepare: replace a data set that prepare made; predict, '
                                'evaluate and export: replace files of the same names',
                                phases=('prepare', 'predict', 'evaluate', 'export'),
                                synonyms='force')
    # predict, evaluate and export
    input: tuple = predicting((), 'an image, a NIfTI volume, or a folder of them; evaluate: masks, '
                              'and perhaps others to compare with', path=True,
                              phases=('predict', 'evaluate'), synonyms='input_dir input_path '
                              'input_folder input_file inputs in image images img folder file '
                              'image_dir image_path img_dir img_path')
    labels: str = predicting('', 'label of the mask --input, or folder of labels', path=True,
                             phases=('evaluate',), synonyms='label gt ground_truth reference')
    output: str = predicting('', 'output folder, or a file for one image or volume; export: the '
                             'ONNX file', own_choice='export: <dataset>.onnx among the results; '
                             'evaluate: evaluate/<name of --input> among them',
                             phases=('predict', 'evaluate', 'export'), path=True,
                             synonyms='out output_file output_path seg mask masks output_dir '
                             'save_dir out_dir output_folder outdir save_path')
    presence_threshold: float = predicting(0.5, 'an image whose soft mask never reaches this value '
                                           'has no lesion; 0: always assume a lesion', at_least=0,
                                           at_most=1, synonyms='presence min_confidence threshold '
                                           'thresh')
    probability: bool = predicting(False, 'also write soft masks', synonyms='soft probabilities')
    # networks
    generation: str = shape('first', 'which published generation of the networks',
                            choices=('first', 'second'), methods=TRANSFER)
    light: bool = shape(True, 'compute γ and β from globally pooled features; False: from full '
                        'feature maps, which fixes the image size', methods=TRANSFER)
    ch: int = shape(62, 'channels of the first convolution', at_least=1, at_most=4096,
                    synonyms='channels ngf base_ch')
    n_res: int = shape(4, 'number of residual blocks, and of AdaILN blocks', at_least=1,
                       at_most=256, methods=TRANSFER)
    n_dis: int = shape(6, 'depth of the discriminators: n_dis + 1 layers global, n_dis − 1 local',
                       at_least=4, at_most=12, methods=TRANSFER)
    img_size: int | tuple = option(256, 'height and width of network input, a multiple of 4; '
                                   'minimum in training: 96 for label transfer (n_dis 6), 32 for '
                                   'the student', NETS, architecture=True, at_most=8192,
                                   unit='px', synonyms='image_size size resolution imgsize')
    img_ch: int = shape(3, '3 color, 1 gray', choices=(3, 1))
    encoder: str = shape(DEFAULT_ENCODER, "network of timm, trained on ImageNet, as the student's "
                         'encoder; none: a U-Net with random weights', methods=STUDENT,
                         synonyms='backbone student_network timm arch')
    encoder_weights: str = option('', 'file of its weights, by the names of timm', NETS, path=True,
                                  phases=TRAIN, methods=STUDENT, synonyms='backbone_weights',
                                  own_choice="installed ones for the default encoder, else timm's")
    # training
    iteration: int = training(1500, 'number of training iterations', at_least=1,
                              synonyms='iterations iter iters steps max_steps epochs epoch '
                              'num_epochs n_epochs max_epochs n_iter num_iterations niter '
                              'total_iters total_iterations')
    batch_size: int = option(2, 'images per domain and iteration; outside training, images per '
                             'batch', TRAINING, phases=NETWORK_PHASES, saved=True, at_least=1,
                             at_most=65536, synonyms='batch bs batches')
    lr: float = training(5e-5, 'learning rate of Adam', above=0,
                         synonyms='learning_rate learning rate lrate')
    weight_decay: float = training(2e-5, 'weight decay of Adam', at_least=0, synonyms='wd')
    decay_flag: bool = training(True, "decay the learning rate to 0 by the stage's schedule; "
                                "published: linearly over the second half")
    augment: bool = training(False, 'augment the training images', synonyms='augmentation')
    print_freq: int = training(100, 'iterations between two image grids', at_least=1,
                               synonyms='log_freq display_freq')
    save_freq: int = training(100, 'iterations between two checkpoints, each scored on val',
                              at_least=1, synonyms='checkpoint_freq save_every save_interval')
    keep_checkpoints: int = training(2, 'number of newest checkpoints to keep; the best one is '
                                     'always kept', at_least=1, synonyms='keep max_keep')
    skip_bad: bool = option(False, 'skip unusable files and list them', TRAINING,
                            phases=('train', 'val'), saved=True)
    teacher: str = option('', 'checkpoint of the teacher, or folder of its run: of stage 0 for '
                          'stage 1; of stage 1 or 0 for stage 2', TRAINING, phases=NETWORK_PHASES,
                          own_choice="the best of the stage before; for stage 2 the data set's "
                          "folders syn_*, if there are any", path=True)
    # loss weights
    adv_weight: float = weight(1.0, 'adversarial loss of the generators', methods=TRANSFER)
    dis_weight: float = weight(15.0, 'loss of the discriminators', methods=TRANSFER)
    cycle_weight: float = weight(10.0, 'cycle consistency (A to B to A)', methods=TRANSFER)
    identity_weight: float = weight(10.0, 'identity: images of the target domain stay unchanged',
                                    methods=TRANSFER)
    cam_weight: float = weight(800.0, 'class-attention loss', methods=TRANSFER)
    recon_weight: float = weight(0.0, 'reconstruction loss', methods=TRANSFER)
    localization_weight: float = weight(0.0, 'loss between masks of disease images and '
                                        'localization maps; 0: train without stage 0',
                                        methods=TRANSFER[:1])
    normal_mask_weight: float = weight(0.0, 'loss for non-empty masks on normal images',
                                       methods=TRANSFER[:1])
    localizer_normal_weight: float = weight(1.0, 'loss for diseased pixels in normal images',
                                            methods=LOCALIZER)
    ce_weight: float = weight(1.0, 'cross entropy on disease images', methods=STUDENT)
    dice_weight: float = weight(1.0, 'Dice loss on disease images', methods=STUDENT)
    normal_weight: float = weight(1.0, 'loss for non-empty masks on normal images', methods=STUDENT)
    # advanced: pseudo-labels and outlines
    postprocess: str = option('auto', 'rule from soft mask to segmentation; auto: the one chosen '
                              'on val, else that of the pseudo-labels, else color_edges (published '
                              'recipe: otsu); none: soft masks only', ADVANCED, phases=SEGMENTING,
                              choices=('auto', 'threshold', 'otsu', 'watershed', 'crf', 'clean',
                                       'color_edges', 'grabcut', 'none'),
                              synonyms='postprocessing rule refine fit')
    pseudo_label_rule: str = advanced(
        'auto', 'stage 2: from soft mask to pseudo-label. clean: Otsu, components by '
        '--keep_components; color_edges: then the outline moved to color edges; grabcut: then '
        'GrabCut, smoothed and 2 px outward; auto: the better of these two on val, without labels '
        'by the label-free score', choices=('auto', 'clean', 'color_edges', 'grabcut'),
        phases=SEGMENTING)
    keep_components: str = outline(
        'large', 'connected components to keep: the most central one, those of at least 0.3 of the '
        'largest, or all', choices=('central', 'large', 'all'), synonyms='component components')
    clear_corners: bool = outline(False, 'remove lesion from the four corner triangles with sides '
                                  'of 80/256 of the image (published for ISIC, second generation)')
    crf_t: float = option(0.0, 'background exponent t of the CRF, (1 − mask)^t; 0: what val chose, '
                          'else 1', ADVANCED, at_least=0, phases=SEGMENTING)
    tta: str = advanced('none', 'test-time augmentation: average over the image and its mirror '
                        'image (mirror) or all four flips (flips; localization maps: also quarter '
                        'turns)', choices=('none', 'mirror', 'flips'), phases=MASK_PHASES,
                        synonyms='flips test_time_augmentation')
    # advanced: augmentation
    rotate: float = learning(15.0, 'maximum random rotation', at_least=0, at_most=180,
                             unit='degrees', synonyms='turn rotation', methods=LOCALIZER + STUDENT)
    contrast_jitter: bool = learning(False, "random contrast around each image's median color; for "
                                     'pale lesions', synonyms='fade', methods=LOCALIZER + STUDENT)
    blur_jitter: bool = learning(False, 'random blur; use it if the two folders differ in '
                                 'sharpness', synonyms='blur', methods=LOCALIZER)
    # advanced: student
    localizer_share: float = learning(0.5, "weight of localization maps in the teacher's soft "
                                      'masks; the rest is stage 1', at_least=0, at_most=1,
                                      methods=STUDENT)
    normal_batch: int = learning(2, 'normal images per iteration', at_least=0, at_most=65536,
                                 methods=STUDENT)
    rounds: int = learning(2, 'parts of the training; in each a new student learns from '
                           'the masks of the one before', at_least=1, at_most=100, methods=STUDENT)
    ema_decay: float = learning(0.98, "decay of ema, the student's exponential moving "
                                "average", at_least=0, at_most=1, methods=STUDENT)
    # advanced: machine and output
    save_visuals: bool = option(True, 'write translations, overlays and report.html; False: run '
                                'only the layers of the mask', ADVANCED, phases=('test',),
                                synonyms='pictures visuals save_images')
    amp: bool = advanced(False, 'mixed precision (bfloat16), where the device has units for it',
                         phases=NETWORK_PHASES,
                         synonyms='fp16 bf16 mixed_precision')
    compile: bool = option(False, 'use torch.compile; slow start, for long runs', ADVANCED,
                           phases=NETWORK_PHASES)
    num_workers: int = option(2, 'threads that read images ahead; 0: none', ADVANCED, at_least=0,
                              at_most=256, phases=NETWORK_PHASES, synonyms='workers threads')
    cache_mb: float = option(2000, 'memory for decoded training images', ADVANCED, at_least=0,
                           unit='MB', phases=TRAIN)
    benchmark_flag: bool = option(False, 'cuDNN benchmark mode: choose the fastest algorithms',
                                  ADVANCED, phases=NETWORK_PHASES)

    def __post_init__(self) -> None:
        for one in fields(self):
            if one.metadata['path']:  # `--flag=~/x` reaches the program as it is
                object.__setattr__(self, one.name, _expanded(getattr(self, one.name)))
            check_value(one, getattr(self, one.name))
        if self.dry_run and self.phase != 'train':
            raise UserError(f'--dry_run True: of --phase train alone, not of {self.phase}')
        if Path(self.dataset).name != self.dataset or self.dataset in ('', '.', '..'):
            raise UserError(f'--dataset {self.dataset!r}: has to be the plain name of a folder '
                            'in --data_root')
        if len(os.fsencode(self.dataset)) > MAX_DATASET_NAME:
            raise UserError(f'--dataset {self.dataset}: too long for the names of files that are '
                            f'made of it; at most {MAX_DATASET_NAME} bytes')
        if min(self.size) < self.smallest_size or any(length % 4 for length in self.size):
            reason = f' (with --n_dis {self.n_dis})' if 'transfer' in self.method else ''
            raise UserError(f'--img_size {self.img_size}: has to be a multiple of 4 and at least '
                            f'{self.smallest_size}{reason}')

    @property
    def method(self) -> str:
        """What a run of this stage and recipe trains: a key of NETWORKS_OF."""
        return method_of(self.recipe, self.stage)

    @property
    def takes_conditioning(self) -> bool:
        """Whether the generators see the stage-1 mask as a second image (published stage 2)."""
        return self.method == 'label_transfer_refine'

    @property
    def trained_by_localizer(self) -> bool:
        """Whether this trains stage 1 with localization maps of stage 0 as teacher of the mask."""
        return self.phase == 'train' and self.stage == 1 and self.localization_weight > 0

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of images in the network, px."""
        one = self.img_size
        return (one, one) if isinstance(one, int) else tuple(one)

    @property
    def smallest_size(self) -> int:
        """The least height and width, px. A U-Net halves four times; in training the global
        discriminator's n_dis − 1 halvings have to leave 3 px for its two last convolutions."""
        if self.method in ('localizer', 'student'):
            return {'localizer': 16, 'student': 32}[self.method]
        return 3 * 2 ** (self.n_dis - 1) if self.phase == 'train' else 8

    @property
    def batch_counts(self) -> dict[str, int]:
        """Images of each domain in an iteration, over all processes."""
        normal = self.normal_batch if self.method == 'student' else self.batch_size
        return {'A': self.batch_size, 'B': normal}

    @property
    def default_rule(self) -> str:
        """Post-processing where val has not chosen. Not one half: the soft mask of an unsure
        network stays below it, but still separates well."""
        if self.recipe == 'published':
            return 'otsu'
        return 'color_edges' if self.pseudo_label_rule == 'auto' else self.pseudo_label_rule

    @property
    def data_folder(self) -> Path:
        return Path(self.data_root) / self.dataset

    @property
    def result_folder(self) -> Path:
        return Path(self.result_dir) / self.dataset

    @property
    def run_folder(self) -> Path:
        return self.result_folder / f'model{self.stage}'

    def saved_values(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {name: getattr(self, name) for name in SAVED}


OPTIONS = {one.name: one for one in fields(Config)}
SAVED = tuple(name for name, one in OPTIONS.items() if one.metadata['saved'])
ARCHITECTURE = tuple(name for name, one in OPTIONS.items() if one.metadata['architecture'])


# type of an option -> types of its values, and what that is called
TYPES = {str: ((str,), 'a text'), int: ((int,), 'an integer'), float: ((float, int), 'a number'),
         bool: ((bool,), 'True or False'), tuple: ((tuple, list), 'a list'),
         int | tuple: ((int, tuple, list), 'an integer, or two')}


def check_value(one: Any, value: Any) -> None:
    """Raises UserError where an option cannot have a value: by its type, choices or bounds."""
    rules = one.metadata
    types, name_of_type = TYPES[one.type]
    numbers = value if isinstance(value, tuple | list) else (value,)
    is_pair = one.type == int | tuple and type(value) is not int
    if type(value) not in types or is_pair and [type(number) for number in value] != [int, int]:
        raise UserError(f'--{one.name} {value!r}: has to be {name_of_type}')
    if rules['choices'] and value not in rules['choices']:
        choices = ', '.join(str(choice) for choice in rules['choices'] if choice != '')
        raise UserError(f'--{one.name} {value}: has to be one of {choices}')
    for number in numbers if one.type in (int, float, int | tuple) else ():
        if not abs(number) <= sys.float_info.max or number < rules['at_least']:
            bound = rules['at_least']
            least = f' of at least {bound:g}' if math.isfinite(bound) else ''
            raise UserError(f'--{one.name} {value}: has to be a finite number{least}')
        if number <= rules['above']:
            raise UserError(f'--{one.name} {value}: has to be above {rules["above"]:g}')
        if number > rules['at_most']:
            raise UserError(f'--{one.name} {value}: has to be at most {rules["at_most"]:g}')


def check_saved_size(saved: dict[str, Any], source: str) -> None:
    """Raises UserError where the images of a checkpoint are so large that one takes minutes."""
    size = saved.get('img_size', 0)
    if max(size if isinstance(size, tuple | list) else [size]) > LARGEST_SAVED_SIZE:
        raise UserError(f'{source}: says images of {size} px, for which one mask takes minutes; '
                        'give the size with --img_size')


def _expanded(value: Any) -> Any:
    """A path, or a list of them, with ~ as the home folder."""
    if isinstance(value, tuple | list):
        return tuple(map(_expanded, value))
    return os.path.expanduser(value) if isinstance(value, str | os.PathLike) else value


def preset(generation: str = 'first', recipe: str = 'ours', stage: int = 1, dataset: str = '',
           profile: str = '', phase: str = 'train', quick: bool = False) -> dict[str, Any]:
    """The defaults that PRESETS set in a situation; with `quick` a tenth of LENGTHS."""
    situation = {'generation': generation, 'recipe': recipe, 'dataset': dataset,
                 'profile': profile or PROFILE_OF.get(dataset, 'generic'),
                 'method': method_of(recipe, stage)}
    values = {}
    for condition, row in PRESETS:
        if condition.items() <= situation.items():
            values |= row
    if quick:
        values |= {name: max(1, values.get(name, OPTIONS[name].default) // 10) for name in LENGTHS}
    return values if phase == 'train' else values | {'batch_size': TEST_BATCH_SIZE}


def resolve(flags: dict[str, Any], saved: dict[str, Any] | None = None, source: str = '',
            inherited: dict[str, Any] | None = None) -> Config:
    """The Config of the flags that the user gave and of `saved`, any fields of Config that a
    checkpoint (named `source` in messages) was made with.

    A flag that contradicts the networks in the file is an error naming both values; `img_size`
    binds only full networks. `inherited` are defaults that come from the teacher of stage 2."""
    saved = saved or {}
    if flags.get('phase', 'train') != 'train' and 'img_size' not in flags:
        check_saved_size(saved, source)
    inherited, own = inherited or {}, ('stage', 'recipe', 'dataset', 'profile', 'quick')
    if inherited.get('quick', False) != flags.get('quick', False):
        own += LENGTHS
    inherited = {name: value for name, value in inherited.items() if name not in own}
    chosen = inherited | saved | flags
    stage, recipe = chosen.get('stage', 1), chosen.get('recipe', 'ours')
    generation, dataset = chosen.get('generation', 'first'), chosen.get('dataset', 'phantom')
    check_value(OPTIONS['stage'], stage)  # what follows looks up by it
    bound = {*ARCHITECTURE, 'stage', 'quick'} | ({'recipe'} if stage == 2 else set())
    if saved.get('light', True):
        bound.discard('img_size')
    if 'stage' in saved and method_of(saved.get('recipe', 'ours'), saved['stage']) in (
            'localizer', 'student'):  # no generator in its file
        bound -= {'generation', 'light', 'n_res', 'n_dis'}
    for name in sorted(bound & saved.keys() & flags.keys()):
        if flags[name] != saved[name]:
            raise UserError(f'--{name} {flags[name]} contradicts {source}, which was made with '
                            f'{name} {saved[name]}; leave the flag out or choose another file')
    if (recipe, stage, generation) == ('published', 2, 'second'):
        raise UserError('--stage 2: the second generation has no published stage 2; use '
                        '--generation first, or --recipe ours')
    values = preset(generation, recipe, stage, dataset, chosen.get('profile', ''),
                    flags.get('phase', 'train'), chosen.get('quick', False))
    return Config(**values | chosen)
