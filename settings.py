"""The settings of a run: one frozen object, and the presets that its defaults come from.

Precedence, lowest first: the preset, what a resumed or tested checkpoint was made with, the
flags the user gave.
"""
from dataclasses import dataclass, fields
from pathlib import Path

from utils import UserError

GENERATORS = ('genA2B', 'genB2A')
DISCRIMINATORS = ('disGA', 'disLA', 'disGB', 'disLB')  # G global, L local; A disease, B normal
NETWORKS = (*GENERATORS, *DISCRIMINATORS)

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
    'print_freq':    (100,     500),     # ours: 15 sheets of pictures a run
    'save_freq':     (100,     500),     # ours: every 5, as published, writes 0.5 GB each time
    'keep':          (2,       2),       # ours: the newest and the one before it
}

DATASET_DEFAULTS = {
    # published: the second generation weighs its losses by data set; BraTS has the values above
    ('second', 'ISIC'): {'cycle_weight': 5.0, 'identity_weight': 50.0, 'cam_weight': 1400.0},
    # ours: small enough to train in minutes on two CPU cores; measured in benchmarks/README.md
    ('first', 'phantom'): {'ch': 16, 'img_size': 128, 'iteration': 200, 'lr': 1e-4,
                           'print_freq': 50, 'save_freq': 50},
    # (without augmentation: crops out of size + 50 px cut away half of a 128 px picture)
    ('second', 'phantom'): {'ch': 16, 'img_size': 128, 'iteration': 400, 'lr': 2e-4,
                            'augment': False, 'print_freq': 100, 'save_freq': 100},
}

TEST_BATCH_SIZE = 8  # ours: without gradients a batch of 8 needs less memory than training does


def preset(generation: str, dataset: str, phase: str) -> dict:
    """The default of every setting that has a preset, for one generation, data set and phase."""
    column = ('first', 'second').index(generation)
    values = {name: row[column] for name, row in DEFAULTS.items()}
    values |= DATASET_DEFAULTS.get((generation, dataset), {})
    if phase == 'test':
        values['batch_size'] = TEST_BATCH_SIZE
    return values


# ----------------------------------------------------------------------------------- settings


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

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, px."""
        if isinstance(self.img_size, int):
            return self.img_size, self.img_size
        return tuple(self.img_size)

    @property
    def smallest_size(self) -> int:
        """The least height and width, px, that the global discriminator can take: n_dis − 1
        halvings have to leave 3 px for the two last convolutions."""
        return 3 * 2 ** (self.n_dis - 1)


ARCHITECTURE_FIELDS = tuple(field.name for field in fields(Architecture))


# where and how a run takes place, not what it computes: a resumed run may differ in them
PLACE_FIELDS = ('phase', 'device', 'data_root', 'result_dir', 'checkpoint', 'resume',
                'num_workers', 'benchmark_flag', 'pictures', 'keep', 'print_freq', 'save_freq')


@dataclass(frozen=True)
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
    print_freq: int  # iterations between two sheets of pictures
    save_freq: int  # iterations between two checkpoints
    keep: int  # newest checkpoints that stay
    phase: str = 'train'
    stage: int = 1
    seed: int = 0
    num_workers: int = 2
    amp: bool = False
    pictures: bool = True
    resume: bool = False
    benchmark_flag: bool = False
    device: str = 'auto'
    checkpoint: str = ''
    data_root: str = str(PROJECT / 'dataset')
    result_dir: str = 'results'

    def __post_init__(self):
        self._at_least(1, 'ch', 'n_res', 'iteration', 'batch_size', 'print_freq', 'save_freq',
                       'keep')
        self._at_least(0, 'weight_decay', 'adv_weight', 'dis_weight', 'cycle_weight',
                       'identity_weight', 'cam_weight', 'recon_weight', 'seed', 'num_workers')
        self._at_least(4, 'n_dis')  # below, the local discriminator has no layers left
        if not 0 < self.lr < float('inf'):
            raise UserError(f'--lr {self.lr}: has to be above 0')
        if self.img_ch not in (1, 3):
            raise UserError(f'--img_ch {self.img_ch}: has to be 3 (colour) or 1 (grey)')
        if Path(self.dataset).name != self.dataset or self.dataset in ('', '.', '..'):
            raise UserError(f'--dataset {self.dataset!r}: has to be the plain name of a folder '
                            'in --data_root')
        smallest = self.smallest_size if self.phase == 'train' else 8
        if min(self.size) < smallest or any(length % 4 for length in self.size):
            raise UserError(f'--img_size {self.img_size}: has to be a multiple of 4 and at least '
                            f'{smallest} (with --n_dis {self.n_dis})')

    def _at_least(self, least, *names):
        for name in names:
            value = getattr(self, name)
            if not least <= value < float('inf'):
                raise UserError(f'--{name} {value}: has to be at least {least}')

    def of_the_run(self) -> dict:
        """What a checkpoint keeps: all but where the run took place."""
        return {field.name: getattr(self, field.name) for field in fields(self)
                if field.name not in PLACE_FIELDS}

    @property
    def result_folder(self) -> Path:
        return Path(self.result_dir) / self.dataset

    @property
    def data_folder(self) -> Path:
        return Path(self.data_root) / self.dataset


def resolve(flags: dict, saved: dict | None = None, source: str = '') -> Settings:
    """Settings from the flags the user gave and, where a checkpoint is read, what it was made with.

    `saved` may hold any fields of Settings. A flag that contradicts the networks in the file is
    an error naming both values; `source` is the file's name for that message. `img_size` binds
    only full networks.
    """
    saved = saved or {}
    binding = [name for name in ARCHITECTURE_FIELDS
               if name in saved and (name != 'img_size' or not saved['light'])]
    for name in binding:
        if name in flags and flags[name] != saved[name]:
            raise UserError(f'--{name} {flags[name]} contradicts {source}, which was made with '
                            f'{name} {saved[name]}; leave the flag out or choose another file')
    chosen = saved | flags
    generation = chosen.get('generation', 'first')
    dataset = chosen.get('dataset', 'phantom')
    values = preset(generation, dataset, flags.get('phase', 'train')) | chosen
    return Settings(**values | {'generation': generation, 'dataset': dataset})

