"""The defaults that generation, recipe, stage, data set and profile set.

Each row of PRESETS: where it holds, and the defaults it sets; later rows win. Sources: "published"
is the authors' code of that generation; "ours" was chosen on val, measured in
docs/ablations.md."""
PROFILES = ('generic', 'dermoscopy', 'brain_mri')
PROFILE_OF = {'ISIC': 'dermoscopy', 'BraTS': 'brain_mri', 'LGG': 'brain_mri'}  # by data set name


def method_of(recipe: str, stage: int) -> str:
    """See Config.method."""
    last = 'student' if recipe == 'ours' else 'label_transfer_refine'
    return ('localizer', 'label_transfer', last)[stage]


PRESETS = (
    # published
    ({'generation': 'second'},
     {'ch': 54, 'iteration': 7000, 'batch_size': 1, 'lr': 1e-4, 'dis_weight': 1.0, 'augment': True,
      'cam_weight': 1000.0, 'recon_weight': 10.0, 'print_freq': 500, 'save_freq': 500}),
    ({'generation': 'second', 'profile': 'dermoscopy'},
     {'cycle_weight': 5.0, 'identity_weight': 50.0, 'cam_weight': 1400.0, 'clear_corners': True}),
    # ours: the built-in data set trains in minutes on two CPU cores
    ({'generation': 'first', 'dataset': 'phantom'},
     {'ch': 16, 'img_size': 128, 'iteration': 200, 'lr': 1e-4, 'print_freq': 50, 'save_freq': 50}),
    # (without augmentation: crops out of size + 50 px cut away half of a 128 px image)
    ({'generation': 'second', 'dataset': 'phantom'},
     {'ch': 16, 'img_size': 128, 'iteration': 400, 'lr': 2e-4, 'augment': False,
      'print_freq': 100, 'save_freq': 100}),
    ({'recipe': 'ours'}, {'localization_weight': 5.0, 'normal_mask_weight': 5.0, 'tta': 'mirror',
                          'keep_components': 'central', 'lr': 1e-4}),
    # dermoscopy: images have no upright side, and some lesions are pale
    ({'recipe': 'ours', 'profile': 'dermoscopy'},
     {'rotate': 180.0, 'tta': 'flips', 'contrast_jitter': True}),
    # brain_mri: upright images: as generic
    ({'recipe': 'ours', 'dataset': 'phantom'}, {'rotate': 180.0, 'tta': 'flips'}),
    ({'method': 'student'},
     {'ch': 16, 'img_size': 160, 'iteration': 600, 'batch_size': 6, 'lr': 1e-3,
      'weight_decay': 1e-4, 'augment': True, 'print_freq': 150, 'save_freq': 150}),
    ({'method': 'student', 'dataset': 'phantom'},
     {'img_size': 128, 'iteration': 100, 'print_freq': 50, 'save_freq': 50}),
    ({'method': 'localizer'},
     {'ch': 16, 'img_size': 128, 'iteration': 900, 'batch_size': 8, 'lr': 1e-3,
      'weight_decay': 1e-3, 'augment': True, 'print_freq': 300, 'save_freq': 300}),
    # dermoscopy: normal images that were enlarged from crops are less sharp
    ({'method': 'localizer', 'profile': 'dermoscopy'}, {'blur_jitter': True}),
    ({'method': 'localizer', 'dataset': 'phantom'},
     {'iteration': 200, 'print_freq': 100, 'save_freq': 100}),
)
LENGTHS = ('iteration', 'print_freq', 'save_freq')
TEST_BATCH_SIZE = 8  # ours: without gradients a batch of 8 needs less memory than training does
