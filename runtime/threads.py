"""Threads that compute results ahead of use."""
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor


def cpu_count() -> int:
    """Processor cores that this process may use; of several on one machine each has its part."""
    has_affinity = hasattr(os, 'sched_getaffinity')
    available = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, available // int(os.environ.get('LOCAL_WORLD_SIZE', 1)))


def prefetch(function: Callable, items: Iterable, threads: int) -> Iterator:
    """function(item) of every item, in order, computed by threads ahead of use. At most two results
    a thread wait to be used, so memory stays flat. Without threads it is map."""
    if not threads:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
