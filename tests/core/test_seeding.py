import numpy as np
import pytest
import torch

from customdiff_core.seeding import numpy_rng, seed_of, torch_generator


def test_a_name_has_one_seed_on_every_machine():
    assert seed_of("noise", 0, 7) == 5234120900134035698
    assert 0 <= seed_of("x") < 2**63


@pytest.mark.parametrize("other", [("noise", 1, 7), ("noise", 0, 8), ("other", 0, 7), ("noise", 7, 0), ("noise", "07")])
def test_another_name_has_another_seed(other: tuple):
    assert seed_of(*other) != seed_of("noise", 0, 7)


def test_parts_do_not_run_together():
    assert seed_of("a", 11) != seed_of("a1", 1)


def test_generators_repeat_and_do_not_touch_the_global_state():
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert torch.equal(torch.randn(4, generator=torch_generator("a")), torch.randn(4, generator=torch_generator("a")))
    assert np.array_equal(numpy_rng("a").random(4), numpy_rng("a").random(4))
    assert not np.array_equal(numpy_rng("a").random(4), numpy_rng("b").random(4))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
