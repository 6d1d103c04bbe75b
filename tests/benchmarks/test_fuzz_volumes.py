"""Random NIfTI headers through predict, as benchmarks/fuzz_volumes.py does at length."""
from fuzz_volumes import run


def test_random_volumes_give_the_known_answer():
    assert run(20, seed=1) == []
