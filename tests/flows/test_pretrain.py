"""The flow `pretrain`, before it begins."""

import pytest

from customdiff_core.errors import WeightsError
from flows.pretrain import pretrain


def test_going_further_needs_something_to_go_on_from() -> None:
    with pytest.raises(WeightsError, match=r'size "further": found no start, need an earlier base model\'s folder'):
        pretrain.fn(size="further")
