"""Several processes, one a device, as torchrun starts them; without torchrun, one process.

    torchrun --nproc_per_node 4 main.py --phase train --batch_size 8

Every process takes its part of each batch or folder; the first one alone writes what belongs to
the run as a whole.
"""
import os
import warnings
from contextlib import ExitStack, contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils import UserError, pick_device


def start(device: str) -> str:
    """Join the other processes where torchrun started this one; the name of this one's device.

    Of several processes on a machine with CUDA each takes the GPU of its local number.
    """
    if 'WORLD_SIZE' not in os.environ:
        return device
    if device not in ('auto', 'cuda', 'cpu'):
        raise UserError(f'--device {device}: with torchrun use auto, cuda or cpu')
    pick_device(device)  # raises where there is none
    wants_gpu = device != 'cpu' and torch.cuda.is_available()
    if wants_gpu:
        local = int(os.environ['LOCAL_RANK'])
        there = torch.cuda.device_count()
        if there < int(os.environ['LOCAL_WORLD_SIZE']):
            raise UserError(f'--nproc_per_node {os.environ["LOCAL_WORLD_SIZE"]}: this machine has '
                            f'{there} GPUs; start as many processes, or give --device cpu')
        device = f'cuda:{local}'
        torch.cuda.set_device(local)
    else:
        device = 'cpu'
    dist.init_process_group('nccl' if wants_gpu else 'gloo')
    return device


def finish() -> None:
    """Part from the other processes, all at the same time: one that goes early may hang others."""
    if dist.is_initialized():
        wait()
        dist.destroy_process_group()


def processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def number() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    return number() == 0


def wait() -> None:
    """Until all processes have come here."""
    if dist.is_initialized():
        dist.barrier()


def check_divisible(flag: str, count: int) -> None:
    """Raises UserError where a batch cannot be dealt out in equal parts."""
    if count % processes():
        next_one = processes() * (count // processes() + 1)
        raise UserError(f'--{flag} {count}: it is shared among the {processes()} processes, so it '
                        f'has to be a multiple of their number, as {next_one} is')


def my_part(count: int) -> slice:
    """Which of `count` things in a row are this process's."""
    each = count // processes()
    return slice(number() * each, (number() + 1) * each)


def my_share(items) -> list:
    """Every n-th of the items, from this process's number on."""
    return list(items)[number()::processes()]


def gather(share: list) -> list:
    """The results of all shares, in the order of the items they are of, in every process."""
    if not dist.is_initialized():
        return share
    shares = [None] * processes()
    dist.all_gather_object(shares, share)
    return [shares[place % len(shares)][place // len(shares)]
            for place in range(sum(map(len, shares)))]


def total(values: Tensor) -> Tensor:
    """The sum of a tensor over the processes."""
    if dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
    return values


def mean(values: Tensor) -> Tensor:
    return total(values) / processes()


def share_gradients(network: nn.Module, whole: bool = True) -> nn.Module:
    """The network such that its backward pass averages gradients over the processes; not `whole`
    where a pass may leave layers out."""
    if not dist.is_initialized():
        return network
    # of a 1×1 convolution's gradient, whose layout counts as two
    warnings.filterwarnings('ignore', 'Grad strides do not match bucket view strides')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)  # the flag is to get another name
        # no buffers to send: spectral norm's vectors come out equal everywhere by themselves
        return DistributedDataParallel(network, broadcast_buffers=False,
                                       find_unused_parameters=not whole)


@contextmanager
def gradients_stay_here(networks):
    """Within, backward passes add to this process's gradients; the next one outside shares all."""
    with ExitStack() as stack:
        for network in networks:
            if isinstance(network, DistributedDataParallel):
                stack.enter_context(network.no_sync())
        yield
