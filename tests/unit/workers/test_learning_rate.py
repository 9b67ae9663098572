"""The learning rate that falls with the rank."""

import pytest

from workers.training.learning_rate import lr_for_rank


@pytest.mark.parametrize(
    ("rank", "lr"), [(8, 5e-3), (2, 1.41e-2), (32, 1.77e-3), (16, 2.97e-3), (1, 2.38e-2), (4, 8.41e-3)]
)
def test_it_falls_with_the_rank_and_is_short_enough_to_write(rank, lr):
    assert lr_for_rank(5e-3, 8, rank) == lr


def test_at_the_reference_it_is_not_rounded():
    assert lr_for_rank(1.23456e-3, 6, 6) == 1.23456e-3


def test_it_is_lower_at_every_higher_rank():
    rates = [lr_for_rank(5e-3, 8, rank) for rank in range(1, 65)]
    assert rates == sorted(set(rates), reverse=True)
