"""The Trainer: the way to a stage's step, image grids, and what it does between iterations."""
import sys
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
        frame = sys._getframe(1)
        while frame:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(PROJECT) and not path.is_relative_to(PROJECT / 'tests'):
                called.append(f'{path.relative_to(PROJECT)}: {frame.f_code.co_name}')
            frame = frame.f_back
        raise FirstGradient

    monkeypatch.setattr(torch.Tensor, 'backward', backward)
    monkeypatch.setattr(torch.autograd, 'backward', backward)
    with pytest.raises(FirstGradient):
        places.run('--phase', 'train', *STAGE_1, *TINY_FLAGS, '--batch_size', 1)
    assert len(called) <= 6, called
    assert called[-1] == 'main.py: main' and called[0].startswith('stages/label_transfer.py')


def test_image_grids_distinguish_train_and_val_images_of_one_name(tiny_config, data_root, tmp_path):
    masks, images = {}, {}
    for split, folder, level in (('train', 'trainA', 50), ('val', 'val/images', 200)):
        path = next((data_root / 'Tiny' / folder).iterdir())
        images[split] = path.rename(path.with_name('same.png'))
        masks[split] = {'same': tmp_path / f'{level}.png'}
        Image.fromarray(np.full((36, 40), level, np.uint8)).save(masks[split]['same'])
    for recipe in ('ours', 'published'):
        trainer = Trainer(tiny_config(stage=2, recipe=recipe))
        trainer.stage = trainer.stage_class(trainer.config, trainer.device)
        trainer.soft_masks = masks
        case = Case('same', images['val'], None)
        rows = trainer._image_grid(Data({'A': [images['train']], 'B': []}, None, [case], None))
        assert [round(image.mean()) for image in rows['stage-1 mask']] == [50, 200]
        assert {len(row) for row in rows.values()} == {2}


@pytest.mark.parametrize('decay', [True, False])
def test_the_learning_rate_follows_the_stages_schedule(decay, tiny_config):
    trainer = Trainer(tiny_config(recipe='published', iteration=8, lr=0.25, decay_flag=decay))
    trainer.stage = trainer.stage_class(trainer.config, trainer.device)
    rates = []
    for trainer.iteration in (0, 4, 6, 7):
        trainer._set_learning_rate()
        rates.append({group['lr'] for optimizer in trainer.stage.optimizers.values()
                      for group in optimizer.param_groups})
    assert rates == ([{0.25}, {0.25}, {0.125}, {0.0625}] if decay else [{0.25}] * 4)


def test_checkpoints_are_due_at_their_interval_at_the_end_and_never_after_a_skipped_step(
        tiny_config):
    trainer = Trainer(tiny_config(iteration=7, save_freq=3, print_freq=2))

    def due(function):
        answers = []
        for trainer.iteration in range(1, 8):
            answers.append(function())
        return [number for number, answer in enumerate(answers, 1) if answer]

    assert due(trainer._validation_due) == [3, 6, 7]
    assert due(trainer._grid_due) == [2, 4, 6, 7]
    trainer.guard.in_a_row = 1
    assert due(trainer._validation_due) == [7]
