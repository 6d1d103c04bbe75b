"""The contract that every stage keeps."""
import copy

import numpy as np
import pytest
import torch

from config import MASK_NETWORK, NETWORKS_OF
from helpers import training_batch
from stages.base import Stage
from trainer import STAGES, Trainer

FLAGS_OF = {'localizer': {'stage': 0}, 'label_transfer': {'stage': 1},
            'label_transfer_refine': {'stage': 2, 'recipe': 'published'}, 'student': {'stage': 2}}


@pytest.fixture(params=NETWORKS_OF)
def method(request):
    return request.param


@pytest.fixture
def make_stage(method, tiny_config):
    """A function that gives a stage of that method, always with the same weights."""
    def make() -> Stage:
        config = tiny_config(batch_size=2, normal_batch=2, **FLAGS_OF[method])
        assert config.method == method
        torch.manual_seed(0)
        return STAGES[method](config, torch.device('cpu'))
    return make


def test_a_step_returns_exactly_the_declared_losses(method, make_stage):
    stage = make_stage()
    assert tuple(stage.networks) == NETWORKS_OF[method]
    assert stage.mask_network is stage.networks[MASK_NETWORK[method]]
    assert set(stage.progress_names) <= set(stage.loss_names)
    before = {name: value.clone() for name, value in stage.networks.state_dict().items()}
    result = stage.step(training_batch(), 0)
    assert tuple(result.losses) == stage.loss_names
    for value in (*result.losses.values(), result.mask_share, result.skipped):
        assert value.shape == () and not value.requires_grad and value.isfinite()
    assert 0 <= result.mask_share <= 1 and result.skipped == 0
    after = stage.networks.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_visuals_are_images_of_one_size(make_stage):
    stage, batch = make_stage(), training_batch()
    stage.networks.eval()
    with torch.no_grad():
        visuals = stage.visuals(batch['A'][:1], batch['mask'][:1])
    assert next(iter(visuals)) == 'image' and len(visuals) >= 3
    for image in visuals.values():
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    assert visuals['image'].shape == (32, 32, 3)


def test_a_resumed_stage_goes_on_to_the_bit(make_stage):
    """From networks, optimizers and state, which is all that a checkpoint keeps of a stage."""
    stage, other = make_stage(), make_stage()
    stage.step(training_batch(), 0)
    other.networks.load_state_dict(stage.networks.state_dict())
    for name, optimizer in stage.optimizers.items():
        other.optimizers[name].load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.load_state(stage.state())
    assert other.state() == stage.state()
    ours, others = (each.step(training_batch(), 1).losses for each in (stage, other))
    assert all(torch.equal(ours[name], others[name]) for name in stage.loss_names)
    assert other.state() == stage.state()


def test_undeclared_losses_are_an_error_of_the_first_iteration(make_stage, monkeypatch):
    stage = make_stage()
    trainer = Trainer(stage.config)
    trainer.stage = stage
    result = stage.step(training_batch(), 0)
    first, *others = stage.loss_names
    one_less = {name: result.losses[name] for name in others}
    surprise = {'surprise': torch.zeros(())}
    for losses in (one_less, result.losses | surprise, one_less | surprise):
        monkeypatch.setattr(stage, 'step',
                            lambda *_, losses=losses: result._replace(losses=losses))
        with pytest.raises(TypeError) as caught:
            trainer._step(training_batch())
        message = str(caught.value)
        assert type(stage).__name__ in message and first in message
        assert ('surprise' in message) == ('surprise' in losses)
        assert trainer.iteration == 0


def test_the_published_schedule_is_constant_and_then_falls_linearly():
    assert [Stage.schedule(step / 4) for step in range(5)] == [1, 1, 1, 0.5, 0]
