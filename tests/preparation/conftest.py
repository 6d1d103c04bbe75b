"""Sources as people download them, and the program that prepares them."""
import pytest

from helpers import Places, draw_images, draw_labels
from nifti_files import store_case


@pytest.fixture
def program(tmp_path):
    """The program, preparing the data set `Made` under tmp_path/data at 64 px."""
    places = Places(tmp_path / 'data', tmp_path)
    places.data = tmp_path / 'data' / 'Made'
    places.flags = ['--phase', 'prepare', '--dataset', 'Made', '--data_root', tmp_path / 'data',
                    '--img_size', 64]
    return places


@pytest.fixture
def tree(tmp_path):
    """A tree like those of BraTS 2018 to 2020. All cases have the same head and, but one, the same
    lesion; names, layout and orientation of the files differ."""
    root = tmp_path / 'downloaded'
    store_case(root / 'HGG' / 'Brats18_A_1', 'Brats18_A_1', kinds=('_flair', '_t1ce'))
    store_case(root / 'HGG' / 'Brats18_B_1', 'Brats18_B_1', ending='.nii')
    store_case(root / 'HGG' / 'C', 'BraTS20_C', order=(2, 0, 1), signs=(1, -1, 1))
    store_case(root / 'LGG' / 'D', 'BraTS20_D', oblique=True)
    store_case(root / 'LGG' / 'E', 'BraTS20_E', slices={}, signs=(-1, -1, 1), ending='.nii')
    store_case(root / 'LGG' / 'F', 'BraTS20_F', seg='')  # no segmentation
    (root / 'LGG' / 'D' / 'BraTS20_D_seg.nii.gz').rename(root / 'LGG' / 'D' / 'W39_Segm.nii.gz')
    (root / 'name_mapping.csv').write_text('BraTS20_A,HGG\n')
    return root


@pytest.fixture
def folders(tmp_path):
    """Eight disease images, eight normal ones, and labels of five of the former."""
    disease, normal, labels = (tmp_path / name for name in ('ill', 'well', 'labels'))
    draw_images(disease, [f'p{i}.png' for i in range(6)], (50, 40), bright_square=True)
    draw_images(disease / 'more', ['p0.jpg', 'p1.bmp'], (64, 64), seed=5, bright_square=True)
    draw_images(normal, [f'q{i}.tif' for i in range(8)], seed=2)
    draw_labels(labels, [f'p{i}' for i in range(4)], (50, 40))
    draw_labels(labels / 'more', ['p0'], (64, 64))
    (labels / 'p3_segmentation.png').rename(labels / 'p3.png')
    return disease, normal, labels
