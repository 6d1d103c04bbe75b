"""The contract that every stage keeps."""
import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from config import MASK_NETWORK, NETWORKS_OF
from stages.base import Stage
from trainer import STAGES, Trainer

FLAGS_OF = {'localizer': {'stage': 0}, 'label_transfer': {'stage': 1},
            'label_transfer_refine': {'stage': 2, 'recipe': 'published'}, 'student': {'stage': 2}}
METHODS = pytest.mark.parametrize('method', NETWORKS_OF)


@pytest.fixture
def make_stage(tiny_config):
    def make(method: str) -> Stage:
        config = tiny_config(batch_size=2, normal_batch=2, **FLAGS_OF[method])
        assert config.method == method
        torch.manual_seed(0)
        return STAGES[method](config, torch.device('cpu'))
    return make


def a_batch() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    mask = torch.full((2, 1, 32, 32), -1.0)
    mask[:, :, 8:20, 10:24] = 0.8
    return {'mask': mask, **{domain: torch.rand(2, 3, 32, 32, generator=rng) * 2 - 1
                             for domain in 'AB'}}


def test_every_method_has_a_stage_and_a_network_for_masks():
    assert STAGES.keys() == NETWORKS_OF.keys() == MASK_NETWORK.keys() == FLAGS_OF.keys()
    assert all(issubclass(stage, Stage) for stage in STAGES.values())


@METHODS
def test_a_stage_has_the_networks_of_its_method(method, make_stage):
    stage = make_stage(method)
    assert tuple(stage.networks) == NETWORKS_OF[method]
    assert stage.mask_network is stage.networks[MASK_NETWORK[method]]
    assert set(stage.progress_names) <= set(stage.loss_names)


@METHODS
def test_a_step_returns_exactly_the_declared_losses(method, make_stage):
    stage = make_stage(method)
    before = {name: value.clone() for name, value in stage.networks.state_dict().items()}
    result = stage.step(a_batch(), 0)
    assert tuple(result.losses) == stage.loss_names
    for value in (*result.losses.values(), result.mask_share, result.skipped):
        assert value.shape == () and not value.requires_grad and value.isfinite()
    assert 0 <= result.mask_share <= 1 and result.skipped == 0
    after = stage.networks.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


@METHODS
def test_visuals_are_images_of_one_size(method, make_stage):
    stage, batch = make_stage(method), a_batch()
    stage.networks.eval()
    with torch.no_grad():
        visuals = stage.visuals(batch['A'][:1], batch['mask'][:1])
    assert next(iter(visuals)) == 'image' and len(visuals) >= 3
    for image in visuals.values():
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    assert visuals['image'].shape == (32, 32, 3)


@METHODS
def test_a_resumed_stage_goes_on_to_the_bit(method, make_stage):
    """From networks, optimizers and state, which is all that a checkpoint keeps of a stage."""
    stage, batch = make_stage(method), a_batch()
    stage.step(batch, 0)
    other = make_stage(method)
    other.networks.load_state_dict(stage.networks.state_dict())
    for name, optimizer in stage.optimizers.items():
        other.optimizers[name].load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.load_state(stage.state())
    assert other.state() == stage.state()
    results = [one.step(batch, 1) for one in (stage, other)]
    assert all(torch.equal(results[0].losses[name], results[1].losses[name])
               for name in stage.loss_names)
    assert other.state() == stage.state()


@METHODS
@pytest.mark.parametrize('change', ['other name', 'one more', 'one less'])
def test_undeclared_losses_are_an_error_of_the_first_iteration(method, change, tiny_config,
                                                               make_stage, monkeypatch):
    stage = make_stage(method)
    trainer = Trainer(stage.config)
    trainer.stage = stage
    step = stage.step

    def changed_step(batch, iteration):
        result = step(batch, iteration)
        losses = dict(result.losses)
        if change != 'one more':
            del losses[stage.loss_names[0]]
        if change != 'one less':
            losses['surprise'] = torch.zeros(())
        return result._replace(losses=losses)

    monkeypatch.setattr(stage, 'step', changed_step)
    with pytest.raises(TypeError) as caught:
        trainer._step(a_batch())
    message = str(caught.value)
    assert type(stage).__name__ in message and stage.loss_names[0] in message
    assert ('surprise' in message) == (change != 'one less')
    assert trainer.iteration == 0


def test_the_published_schedule_is_constant_and_then_falls_linearly():
    rates = [Stage.schedule(step / 4) for step in range(5)]
    assert rates == [1, 1, 1, 0.5, 0]
