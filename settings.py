"""The settings of a run: one frozen object, and the presets that its defaults come from.

Precedence, lowest first: the preset, what a resumed or tested checkpoint was made with, the
flags the user gave.
"""
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

from utils import UserError

GENERATORS = ('genA2B', 'genB2A')
DISCRIMINATORS = ('disGA', 'disLA', 'disGB', 'disLB')  # G global, L local; A disease, B normal
NETWORKS = (*GENERATORS, *DISCRIMINATORS)
LOCATOR_NETWORKS = ('locator',)  # stage 0
# stage 2: the network that learns, its moving average, and the copy that makes the targets
STUDENT_NETWORKS = ('student', 'average', 'teacher')
NETWORKS_OF = {'published': NETWORKS, 'locator': LOCATOR_NETWORKS, 'student': STUDENT_NETWORKS}
# the one of them that makes the masks of disease pictures
MASK_NETWORK = {'published': 'genA2B', 'locator': 'locator', 'student': 'average'}

# the words that a setting may be
CHOICES = {'generation': ('first', 'second'), 'scheme': tuple(NETWORKS_OF),
           'recipe': ('ours', 'published'), 'component': ('central', 'large', 'all'),
           'stage': (0, 1, 2), 'preset': ('own', 'ISIC'), 'student': ('unet', 'locator'),
           'postprocess': ('auto', 'threshold', 'otsu', 'watershed', 'crf', 'clean', 'fit', 'none')}

PROJECT = Path(__file__).resolve().parent

# ------------------------------------------------------------------------------------ presets
# Where a number comes from:
#   published  the authors' code of that generation
#   ours       not published, or the published value would not serve (the reason stands beside it)

DEFAULTS = {
    # name            first    second   source
    'light':         (True,    True),    # published: both were trained light
    'ch':            (62,      54),      # published
    'n_res':         (4,       4),       # published
    'n_dis':         (6,       6),       # published: global depth 7, local depth 5
    'img_size':      (256,     256),     # published
    'img_ch':        (3,       3),       # published
    'iteration':     (1500,    7000),    # published
    'batch_size':    (2,       1),       # published
    'lr':            (5e-5,    1e-4),    # published
    'weight_decay':  (2e-5,    2e-5),    # published
    'decay_flag':    (True,    True),    # ours: the published code has the flag, not its value
    'adv_weight':    (1.0,     1.0),     # published
    'dis_weight':    (15.0,    1.0),     # published: factor of the discriminators' own loss
    'cycle_weight':  (10.0,    10.0),    # published
    'identity_weight': (10.0,  10.0),    # published
    'cam_weight':    (800.0,   1000.0),  # published
    'recon_weight':  (0.0,     10.0),    # published: it enters no loss of the first generation
    'augment':       (False,   True),    # published
    'clear_corners': (False,   False),   # published: for ISIC in the second generation
    'print_freq':    (100,     500),     # ours: 15 sheets of pictures a run
    'save_freq':     (100,     500),     # ours: every 5, as published, writes 0.5 GB each time
    'keep':          (2,       2),       # ours: the newest and the one before it
}

DATASET_DEFAULTS = {
    # published: the second generation weighs its losses by data set; BraTS has the values above
    ('second', 'ISIC'): {'cycle_weight': 5.0, 'identity_weight': 50.0, 'cam_weight': 1400.0,
                         'clear_corners': True},
    # ours: small enough to train in minutes on two CPU cores; measured in benchmarks/README.md
    ('first', 'phantom'): {'ch': 16, 'img_size': 128, 'iteration': 200, 'lr': 1e-4,
                           'print_freq': 50, 'save_freq': 50},
    # (without augmentation: crops out of size + 50 px cut away half of a 128 px picture)
    ('second', 'phantom'): {'ch': 16, 'img_size': 128, 'iteration': 400, 'lr': 2e-4,
                            'augment': False, 'print_freq': 100, 'save_freq': 100},
}

# Our recipe, for networks of every stage: what it does otherwise than the published procedure.
OUR_DEFAULTS = {
    'location_weight': 5.0,  # the locator of stage 0 teaches the mask of stage 1
    'normal_mask_weight': 5.0,
    'fit': True,
    'flips': True,
    'lr': 1e-4,
}
OUR_DATASET_DEFAULTS = {
    # dermoscopy: the lesion lies in the middle, no side is up, some lesions are pale or of several
    # shades, and dermatologists draw smooth lines outside a lesion's pale rim
    'ISIC': {'component': 'central', 'turn': 180.0, 'fade': True, 'lean': 2.0, 'cut': True,
             'margin': 2.0},
    'phantom': {'component': 'central', 'turn': 180.0},
}

# Stage 2 with a student: its own values of settings it shares with stage 1, and those it alone has.
# All are ours (nothing like it is published); what they were chosen by: benchmarks/README.md.
STUDENT_DEFAULTS = {
    'ch': 16, 'iteration': 600, 'batch_size': 6, 'lr': 1e-3, 'weight_decay': 1e-4,
    'flips': True, 'augment': True,
}
STUDENT_DATASET_DEFAULTS = {
    # there stage 1 makes lesions too small, and so does renewing
    'ISIC': {'location_share': 1.0, 'renew_freq': 0, 'student': 'locator', 'lr': 5e-4},
    'phantom': {'iteration': 200},
}

# Stage 0: the locator. All ours.
LOCATOR_DEFAULTS = {
    'ch': 16, 'img_size': 128, 'iteration': 900, 'batch_size': 8, 'lr': 1e-3, 'weight_decay': 1e-3,
    'augment': True, 'print_freq': 100, 'save_freq': 100,
}
LOCATOR_DATASET_DEFAULTS = {
    # normal pictures that were enlarged from crops are less sharp
    'ISIC': {'blur': True},
    'phantom': {'iteration': 200},
}


TEST_BATCH_SIZE = 8  # ours: without gradients a batch of 8 needs less memory than training does


def preset(generation: str, dataset: str, phase: str, scheme: str, recipe: str) -> dict:
    """The default of every setting that has a preset."""
    column = ('first', 'second').index(generation)
    values = {name: row[column] for name, row in DEFAULTS.items()}
    values |= DATASET_DEFAULTS.get((generation, dataset), {})
    if recipe == 'ours':
        values |= OUR_DEFAULTS | OUR_DATASET_DEFAULTS.get(dataset, {})
    if scheme == 'student':
        values |= {'print_freq': 100, 'save_freq': 100, **STUDENT_DEFAULTS,
                   **STUDENT_DATASET_DEFAULTS.get(dataset, {})}
    if scheme == 'locator':
        values |= LOCATOR_DEFAULTS | LOCATOR_DATASET_DEFAULTS.get(dataset, {})
    if phase != 'train':
        values['batch_size'] = TEST_BATCH_SIZE
    return values


# ----------------------------------------------------------------------------------- settings


class Lesions(NamedTuple):
    """What is known of a data set's lesions when a mask becomes a target or is fitted."""

    component: str = 'large'  # which components are lesion: see outline.clean
    lean: float = 1.0  # how generous outlines are: see outline.fit_to_picture
    cut: bool = False  # whether a graph cut finds them: see outline.cut_out
    margin: float = 0.0  # how far outside of it labels are drawn, px: see outline.with_margin


@dataclass(frozen=True)
class Architecture:
    """All that fixes the shapes of the six networks."""

    generation: str  # first or second
    ch: int  # channels of the first convolution
    n_res: int  # residual and AdaILN blocks
    light: bool  # γ and β from pooled features; else from all, which fixes img_size
    n_dis: int  # depth of the discriminators: n_dis + 1 global, n_dis − 1 local
    img_size: int  # px; networks also take (height, width)
    img_ch: int  # channels of a picture: 3 or 1
    # the six networks; locator (stage 0): a classifier; student (stage 2): a segmentation network
    scheme: str = 'published'
    student: str = 'unet'  # what learns in stage 2: a new U-Net, or the locator, which goes on

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, px."""
        if isinstance(self.img_size, int):
            return self.img_size, self.img_size
        return tuple(self.img_size)

    def smallest_size(self, phase: str) -> int:
        """The least height and width, px. A U-Net halves four times; in training the global
        discriminator's n_dis − 1 halvings have to leave 3 px for its two last convolutions."""
        if self.scheme == 'student' and self.student == 'unet':
            return 32
        if self.scheme in ('locator', 'student'):
            return 16
        return 3 * 2 ** (self.n_dis - 1) if phase == 'train' else 8


ARCHITECTURE_FIELDS = tuple(field.name for field in fields(Architecture))


# where and how a run takes place, not what it computes: a resumed run may differ in them
PLACE_FIELDS = ('phase', 'device', 'data_root', 'result_dir', 'checkpoint', 'teacher', 'resume',
                'num_workers', 'cache_mb', 'compile', 'benchmark_flag', 'pictures', 'postprocess',
                'crf_t', 'dry_run', 'source', 'source_format', 'modality', 'z_range', 'lesion_px',
                'split', 'overwrite', 'input', 'output', 'presence', 'probability')


@dataclass(frozen=True, kw_only=True)
class Settings(Architecture):
    """Everything one run is told. Defaults and precedence: see the top of this file."""

    dataset: str
    iteration: int
    batch_size: int
    lr: float
    weight_decay: float
    decay_flag: bool
    adv_weight: float
    dis_weight: float
    cycle_weight: float
    identity_weight: float
    cam_weight: float
    recon_weight: float
    augment: bool
    clear_corners: bool
    print_freq: int  # iterations between two sheets of pictures
    save_freq: int  # iterations between two checkpoints
    keep: int  # newest checkpoints that stay
    phase: str = 'train'
    stage: int = 1
    recipe: str = 'ours'  # or published
    preset: str = 'own'  # whose defaults apply: those of `dataset`, or of this data set
    seed: int = 0
    postprocess: str = 'auto'  # what val chose for the checkpoint, else default_rule
    crf_t: float = 0.0  # the CRF's background exponent; 0: what val chose, else 1
    flips: bool = False  # average masks over the flips of a picture
    location_weight: float = 0.0  # stage 1: masks of disease pictures against the locator's
    normal_mask_weight: float = 0.0  # stage 1: cross entropy of an empty mask on normal pictures
    component: str = 'large'  # which components of a target stay: see outline.clean
    location_share: float = 0.5  # stage 2: of the locator in the masks that teach; rest: stage 1
    fit: bool = False  # stage 2: targets have their outline moved to where the colours change
    lean: float = 1.0  # where between two colours it comes to lie: see outline.fit_to_picture
    cut: bool = False  # then a graph cut looks for it: see outline.cut_out
    margin: float = 0.0  # then it is drawn smoothly so far outside, px of a picture of 256; 0: not
    blur: bool = False  # stage 0: pictures are blurred at random
    fade: bool = False  # stages 0 and 2: how strongly lesions differ from their surroundings varies
    turn: float = 15.0  # degrees, to either side, that augmentation turns pictures (stages 0, 2)
    # the student of stage 2
    normal_batch: int = 2  # normal pictures in an iteration, beside batch_size of disease
    warm_up: int = 100  # iterations on the stage-1 masks, before the average makes the targets
    ramp_up: int = 0  # iterations in which the share of renewed targets grows to 1
    renew_freq: int = 50  # iterations between two renewals of the targets; 0: never
    ema_decay: float = 0.98  # of the moving average
    guard: float = 0.3  # least Jaccard index, 0 to 1, of a renewed target with the stage-1 mask
    confidence: float = 0.0  # least |2m − 1| of a pixel of the renewed mask m that counts
    ce_weight: float = 1.0  # cross entropy on disease pictures
    dice_weight: float = 1.0  # Dice loss on disease pictures
    normal_weight: float = 1.0  # cross entropy of an empty mask on normal pictures
    num_workers: int = 2  # threads that read pictures ahead
    cache_mb: int = 2000  # of decoded training pictures that are kept
    amp: bool = False
    compile: bool = False
    pictures: bool = True
    resume: bool = False
    dry_run: bool = False  # train: check and say what would be done, and stop
    skip_bad: bool = False  # train, val: go on without files that cannot be used
    benchmark_flag: bool = False
    device: str = 'auto'
    checkpoint: tuple = ()  # files; val takes several, the other phases one
    teacher: str = ''
    data_root: str = str(PROJECT / 'dataset')
    result_dir: str = 'results'
    # prepare
    source: tuple = ()  # folders to make a data set of
    source_format: str = ''  # brats, isic or folders
    modality: str = 'flair'
    z_range: str = '90-120'  # of axial slices; all: those with enough head
    lesion_px: int = 500  # least lesion, px of the prepared picture, that makes a slice diseased
    split: tuple = ()  # disease pictures of train, val, test: counts or fractions; (): the format's
    overwrite: bool = False
    # predict, export
    input: str = ''
    output: str = ''
    presence: float = 0.5  # soft masks that nowhere reach this hold no lesion
    probability: bool = False

    def __post_init__(self):
        self._at_least(1, 'ch', 'n_res', 'iteration', 'batch_size', 'print_freq', 'save_freq',
                       'keep')
        self._at_least(0, 'weight_decay', 'adv_weight', 'dis_weight', 'cycle_weight',
                       'identity_weight', 'cam_weight', 'recon_weight', 'seed', 'num_workers',
                       'cache_mb')
        self._at_least(0, 'location_weight', 'normal_mask_weight')
        self._at_least(0, 'crf_t', 'normal_batch', 'warm_up', 'ramp_up', 'renew_freq', 'ce_weight',
                       'dice_weight', 'normal_weight', 'ema_decay', 'guard', 'confidence')
        self._at_least(0, 'turn', 'lesion_px', 'presence', 'margin')
        self._at_least(0.1, 'lean')
        self._at_most(180, 'turn')
        self._at_most(10, 'lean')
        self._at_most(64, 'margin')
        self._at_least(0, 'location_share')
        self._at_most(1, 'location_share', 'ema_decay', 'guard', 'confidence', 'presence')
        self._at_least(4, 'n_dis')  # below, the local discriminator has no layers left
        # far above any use; what a file says is not believed further
        for name, most in {'ch': 4096, 'n_res': 256, 'n_dis': 12, 'batch_size': 65536,
                           'normal_batch': 65536, 'num_workers': 256, 'seed': 2 ** 63}.items():
            self._at_most(most, name)
        for name, words in CHOICES.items():
            if getattr(self, name) not in words:
                raise UserError(f'--{name} {getattr(self, name)}: has to be one of '
                                f'{", ".join(map(str, words))}')
        if not 0 < self.lr < float('inf'):
            raise UserError(f'--lr {self.lr}: has to be above 0')
        if self.img_ch not in (1, 3):
            raise UserError(f'--img_ch {self.img_ch}: has to be 3 (colour) or 1 (grey)')
        if self.dry_run and self.phase != 'train':
            raise UserError(f'--dry_run True: of --phase train alone, not of {self.phase}')
        if Path(self.dataset).name != self.dataset or self.dataset in ('', '.', '..'):
            raise UserError(f'--dataset {self.dataset!r}: has to be the plain name of a folder '
                            'in --data_root')
        smallest = self.smallest_size(self.phase)
        if max(self.size) > 8192:
            raise UserError(f'--img_size {self.img_size}: has to be at most 8192')
        if min(self.size) < smallest or any(length % 4 for length in self.size):
            reason = '' if self.scheme == 'student' else f' (with --n_dis {self.n_dis})'
            raise UserError(f'--img_size {self.img_size}: has to be a multiple of 4 and at least '
                            f'{smallest}{reason}')

    def _at_least(self, least, *names):
        for name in names:
            value = getattr(self, name)
            if not least <= value < float('inf'):
                raise UserError(f'--{name} {value}: has to be a finite number of at least {least}')

    def _at_most(self, most, *names):
        for name in names:
            if getattr(self, name) > most:
                raise UserError(f'--{name} {getattr(self, name)}: has to be at most {most}')

    @property
    def is_located(self) -> bool:
        """Whether this trains stage 1 with the locator of stage 0 as the mask's teacher."""
        return self.phase == 'train' and self.stage == 1 and self.location_weight > 0

    @property
    def no_side_is_up(self) -> bool:
        """Whether pictures upside down look as usual to a network trained with these turns."""
        return self.turn > 90

    @property
    def lesions(self) -> Lesions:
        return Lesions(self.component, self.lean, self.cut, self.margin)

    @property
    def default_rule(self) -> str:
        """Post-processing where val has not chosen; not one half, since an unsure network stays
        below it, but parts well."""
        return 'fit' if self.fit else 'otsu'

    @property
    def run_folder(self) -> Path:
        return self.result_folder / f'model{self.stage}'

    def of_the_run(self) -> dict:
        """What a checkpoint keeps: all but where the run took place."""
        return {name: getattr(self, name) for name in RUN_FIELDS}

    @property
    def result_folder(self) -> Path:
        return Path(self.result_dir) / self.dataset

    @property
    def data_folder(self) -> Path:
        return Path(self.data_root) / self.dataset


RUN_FIELDS = tuple(field.name for field in fields(Settings) if field.name not in PLACE_FIELDS)


def resolve(flags: dict, saved: dict | None = None, source: str = '',
            inherited: dict | None = None) -> Settings:
    """Settings from the flags the user gave and, where a checkpoint is read, what it was made with.

    `saved` may hold any fields of Settings. A flag that contradicts the networks in the file is
    an error naming both values; `source` is the file's name for that message. `img_size` binds
    only full networks. `inherited` are defaults that come from the teacher of stage 2.
    """
    saved = saved or {}
    inherited = {name: value for name, value in (inherited or {}).items()
                 if name not in ('stage', 'scheme', 'dataset')}
    chosen = inherited | saved | flags
    stage = chosen.get('stage', 1)
    recipe = chosen.get('recipe', 'ours')
    scheme = chosen.get('scheme', 'student' if recipe == 'ours' else 'published')
    if stage != 2:
        if flags.get('scheme') == 'student':
            raise UserError('--scheme student: a student learns in stage 2; add --stage 2')
        scheme = 'published' if stage else 'locator'
    generation = chosen.get('generation', 'first')
    free = set() if not saved.get('light', True) else {'img_size'}
    if saved.get('scheme') in ('student', 'locator'):  # its file holds no generator
        free |= {'generation', 'light', 'n_res', 'n_dis'}
    for name in (*ARCHITECTURE_FIELDS, 'stage'):
        if name in saved and name in flags and name not in free and flags[name] != saved[name]:
            raise UserError(f'--{name} {flags[name]} contradicts {source}, which was made with '
                            f'{name} {saved[name]}; leave the flag out or choose another file')
    if stage == 2 and scheme == 'published' and generation == 'second':
        raise UserError('--scheme published: generators of the second generation take no stage-1 '
                        'mask; use --scheme student, or --generation first')
    dataset = chosen.get('dataset', 'phantom')
    like = dataset if chosen.get('preset', 'own') == 'own' else chosen['preset']
    values = preset(generation, like, flags.get('phase', 'train'), scheme, recipe) | chosen
    return Settings(**values | {'generation': generation, 'dataset': dataset, 'scheme': scheme,
                                'stage': stage, 'recipe': recipe})
