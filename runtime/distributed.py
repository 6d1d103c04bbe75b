"""Several processes, one per device, as torchrun starts them; without torchrun, one process.

    torchrun --nproc_per_node 4 main.py --phase train --batch_size 8

Each takes its shard of batches and folders; rank 0 alone writes what belongs to the whole run."""
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils import UserError, pick_device


def init(device: str) -> str:
    """Join the other processes where torchrun started this one; returns the device to use. Raises
    UserError where there are fewer GPUs than processes, or a device that several cannot share."""
    if 'WORLD_SIZE' not in os.environ:
        return device
    if device not in ('auto', 'cuda', 'cpu'):
        raise UserError(f'--device {device}: with torchrun use auto, cuda or cpu')
    pick_device(device)  # raises where this machine has no such device
    use_gpu = device != 'cpu' and torch.cuda.is_available()
    if use_gpu:
        processes, gpus = os.environ['LOCAL_WORLD_SIZE'], torch.cuda.device_count()
        if gpus < int(processes):
            raise UserError(f'--nproc_per_node {processes}: this machine has {gpus} GPUs; start as '
                            'many processes, or give --device cpu')
        torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
    dist.init_process_group('nccl' if use_gpu else 'gloo')
    return f'cuda:{os.environ["LOCAL_RANK"]}' if use_gpu else 'cpu'


def shutdown() -> None:
    """Leave the group of processes, all at the same time: one that leaves early may hang others."""
    if dist.is_initialized():
        barrier()
        dist.destroy_process_group()


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main_process() -> bool:
    return rank() == 0


def barrier() -> None:
    """Wait until all processes have come here."""
    if dist.is_initialized():
        dist.barrier()


def check_divisible(flag: str, count: int) -> None:
    """Raises UserError where a batch of `count` images cannot be split evenly."""
    size = world_size()
    if count % size:
        raise UserError(f'--{flag} {count}: it is shared among the {size} processes, so it has to '
                        f'be a multiple of their number, such as {size * (count // size + 1)}')


def shard_slice(count: int) -> slice:
    """This process's part of `count` things in a row."""
    per_process = count // world_size()
    return slice(rank() * per_process, (rank() + 1) * per_process)


def shard(items: Iterable[Any]) -> list[Any]:
    """This process's items: every n-th of them, from its rank on."""
    return list(items)[rank()::world_size()]


def gather(results: list[Any]) -> list[Any]:
    """The results for all shards, in the order of the items before `shard`, in every process."""
    if not dist.is_initialized():
        return results
    shards = [None] * world_size()
    dist.all_gather_object(shards, results)
    return [shards[index % len(shards)][index // len(shards)]
            for index in range(sum(map(len, shards)))]


def from_main(make: Callable[[], Any]) -> Any:
    """What `make` returns in the main process, which alone calls it, in every process."""
    return gather([make() if is_main_process() else None])[0]


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum of a tensor over the processes."""
    if dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
    return values


def all_reduce_mean(values: Tensor) -> Tensor:
    """The mean of a tensor over the processes."""
    return all_reduce_sum(values) / world_size()


def wrap_ddp(network: nn.Module, whole: bool = True) -> nn.Module:
    """The network with gradients averaged over the processes. `whole` is False where a pass may
    leave layers out, which costs a search for them."""
    if not dist.is_initialized():
        return network
    # about the gradient of a 1×1 convolution, which has two equivalent memory layouts
    warnings.filterwarnings('ignore', 'Grad strides do not match bucket view strides')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)  # the flag will get another name
        # buffers are not sent: the vectors of spectral norm come out equal in every process
        return DistributedDataParallel(network, broadcast_buffers=False,
                                       find_unused_parameters=not whole)


@contextmanager
def no_sync(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Within, gradients add up in this process; the next backward pass outside averages them."""
    with ExitStack() as stack:
        for network in networks:
            if isinstance(network, DistributedDataParallel):
                stack.enter_context(network.no_sync())
        yield
