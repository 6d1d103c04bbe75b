"""Small data sets and trained networks that many tests use."""
from collections.abc import Callable
from pathlib import Path

import pytest

from config import Config, resolve
from helpers import STAGE_1, TINY, TINY_FLAGS, Places, draw_data_set
from presets import PRESETS


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """A data root that holds the set `Tiny` (see helpers.draw_data_set)."""
    return draw_data_set(tmp_path / 'data')


@pytest.fixture
def places(data_root: Path, tmp_path: Path) -> Places:
    """That set and an empty result folder."""
    return Places(data_root, tmp_path)


@pytest.fixture
def tiny_config(data_root: Path, tmp_path: Path) -> Callable[..., Config]:
    """A function that gives the Config of a tiny run on that set, with any option changed."""
    def make(**changed: object) -> Config:
        return resolve({**TINY, 'dataset': 'Tiny', 'data_root': str(data_root),
                        'result_dir': str(tmp_path / 'results'), 'iteration': 2,
                        'batch_size': 1, **changed})
    return make


SMALL = {'ch': 4, 'img_size': 32, 'iteration': 2, 'batch_size': 2, 'save_freq': 1}
SMALL_PRESETS = (*PRESETS, ({'method': 'localizer'}, SMALL),
                 ({'method': 'student'}, {**SMALL, 'encoder': 'none'}))


@pytest.fixture
def small_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets that make stages 0 and 2 as small as TINY makes stage 1."""
    monkeypatch.setattr('config.PRESETS', SMALL_PRESETS)


def trained(folder: Path, *flags: object) -> Places:
    """Places below `folder` with a run of two iterations."""
    places = Places(draw_data_set(folder / 'data'), folder)
    places.done('--phase', 'train', *TINY_FLAGS, '--batch_size', 1, '--iteration', 2, *flags)
    return places


@pytest.fixture(scope='session')
def stage_1_run(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """Places with a published stage-1 run of two iterations, for reading alone."""
    return trained(tmp_path_factory.mktemp('stage_1'), *STAGE_1, '--save_freq', 2,
                   '--print_freq', 2)


@pytest.fixture(scope='session')
def all_stages_run(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """Places with runs of all stages of our recipe, two iterations each, for reading alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('config.PRESETS', SMALL_PRESETS)
        places = trained(tmp_path_factory.mktemp('all_stages'), '--stage', 1, '--save_freq', 1)
        places.done('--phase', 'train', '--stage', 2)
        places.done('--phase', 'val', '--stage', 2)
        return places


@pytest.fixture
def stage_1(stage_1_run: Places, tmp_path: Path) -> Places:
    """A copy of `stage_1_run`, to be changed at will."""
    return stage_1_run.copy(tmp_path)


@pytest.fixture
def all_stages(all_stages_run: Places, tmp_path: Path) -> Places:
    """A copy of `all_stages_run`, to be changed at will."""
    return all_stages_run.copy(tmp_path)
