"""The Trainer: the way to a stage's step, and image grids."""
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset import Case
from helpers import PROJECT, STAGE_1, TINY_FLAGS
from trainer import Data, Trainer


class FirstGradient(Exception):
    """Ends a run where it first computes gradients."""


def test_from_the_command_line_to_the_first_gradient_in_six_calls(places, monkeypatch):
    """main, workflow, trainer, its step, the stage's step, and at most one function of that."""
    called = []

    def backward(*arguments, **keywords):
        for frame in reversed(traceback.extract_stack()):
            path = Path(frame.filename)
            if path.is_relative_to(PROJECT) and not {'tests', '.venv'} & {*path.parts}:
                called.append(f'{path.relative_to(PROJECT)}: {frame.name}')
        raise FirstGradient

    monkeypatch.setattr(torch.Tensor, 'backward', backward)
    monkeypatch.setattr(torch.autograd, 'backward', backward)
    with pytest.raises(FirstGradient):
        places.run('--phase', 'train', *STAGE_1, *TINY_FLAGS, '--batch_size', 1)
    assert len(called) <= 6, called
    assert called[-1] == 'main.py: main' and called[0].startswith('stages/label_transfer.py')


@pytest.mark.parametrize('recipe', ['ours', 'published'])
def test_image_grids_distinguish_train_and_val_images_of_one_name(recipe, tiny_config, tmp_path):
    trainer = Trainer(tiny_config(stage=2, recipe=recipe))
    trainer.stage = trainer.stage_class(trainer.config, trainer.device)
    images = []
    for split, folder, level in (('train', 'trainA', 50), ('val', 'val/images', 200)):
        path = next((trainer.config.data_folder / folder).iterdir())
        images.append(path.rename(path.with_name('same.png')))
        trainer.soft_masks[split] = {'same': tmp_path / f'{level}.png'}
        Image.fromarray(np.full((36, 40), level, np.uint8)).save(tmp_path / f'{level}.png')
    columns = trainer._image_grid(Data({'A': images[:1], 'B': []}, None,
                                       [Case('same', images[1], None)], None))
    assert {title: round(images['teacher_mask'].mean()) for title, images in columns.items()} == {
        'train\nsame.png': 50, 'val\nsame.png': 200}
