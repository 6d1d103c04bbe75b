"""The contract that every stage keeps."""
from unittest import mock

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from config import MASK_NETWORK, NETWORKS_OF
from helpers import PROJECT, same, training_batch
from reporting import visualize
from stages.base import Stage
from trainer import STAGES, Trainer

DOCS = ''.join((PROJECT / 'docs' / f'{name}.md').read_text('utf-8')
               for name in ('training', 'prediction'))
FLAGS_OF = {'localizer': {'stage': 0, 'blur_jitter': True}, 'label_transfer': {'stage': 1},
            'label_transfer_refine': {'stage': 2, 'recipe': 'published'}, 'student': {'stage': 2}}


class NoLook(TorchDispatchMode):
    """Within, nobody may look at the value of a tensor (`if`, `item`): that waits for a GPU."""

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        assert function is not torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(named or {}))


@pytest.fixture(params=NETWORKS_OF)
def stage(request, tiny_config):
    config = tiny_config(batch_size=2, normal_batch=2, **FLAGS_OF[request.param])
    assert config.method == request.param
    torch.manual_seed(0)
    return STAGES[config.method](config, torch.device('cpu'))


def test_a_step_returns_exactly_the_declared_losses(stage):
    method = stage.config.method
    assert tuple(stage.networks) == NETWORKS_OF[method]
    assert stage.mask_network is stage.networks[MASK_NETWORK[method]]
    assert set(stage.progress_names) <= set(stage.loss_names)
    before = {name: value.clone() for name, value in stage.networks.state_dict().items()}
    with NoLook():
        result = stage.step(training_batch(), 0)
    assert tuple(result.losses) == stage.loss_names
    for value in (*result.losses.values(), result.mask_share, result.skipped):
        assert value.shape == () and not value.requires_grad and value.isfinite()
    assert 0 <= result.mask_share <= 1 and result.skipped == 0
    assert not same(before, dict(stage.networks.state_dict()))


def test_visuals_are_images_of_one_size(stage):
    batch = training_batch()
    stage.networks.eval()
    with torch.no_grad():
        visuals = stage.visuals(batch['A'][:1], batch['mask'][:1])
    assert next(iter(visuals)) == 'image' and len(visuals) >= 3
    for kind, image in visuals.items():
        assert visualize.kind_name(kind) in DOCS
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    assert visuals['image'].shape == (32, 32, 3)


def test_undeclared_losses_are_an_error_of_the_first_iteration(stage, monkeypatch):
    trainer = Trainer(stage.config)
    trainer.stage = stage
    result = stage.step(training_batch(), 0)
    first, *others = stage.loss_names
    one_less = {name: result.losses[name] for name in others}
    surprise = {'surprise': torch.zeros(())}
    for losses in (one_less, result.losses | surprise, one_less | surprise):
        wrong = mock.Mock(return_value=result._replace(losses=losses))
        monkeypatch.setattr(stage, 'step', wrong)
        with pytest.raises(TypeError, match=f'{type(stage).__name__}.*{first}') as caught:
            trainer._step(training_batch())
        assert ('surprise' in str(caught.value)) == ('surprise' in losses)
        assert trainer.iteration == 0


def test_the_published_schedule_is_constant_and_then_falls_linearly():
    assert [Stage.schedule(step / 4) for step in range(5)] == [1, 1, 1, 0.5, 0]
