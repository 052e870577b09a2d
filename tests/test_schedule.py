"""The learning rate at every step: torch's own schedulers, closed forms, and the edges."""

import math

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from vitrail.errors import ConfigError
from vitrail.training.recipe import Schedule
from vitrail.training.schedule import factor


def test_the_rate_rises_in_a_line_to_one_and_falls_along_half_a_cosine() -> None:
    schedule = Schedule(name="cosine", warmup=0.2, final=0.1)

    rates = [factor(schedule, step, 21) for step in range(21)]

    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[12] == pytest.approx(0.55)  # half way down
    assert rates[20] == pytest.approx(0.1)
    by_hand = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * i / 16)) for i in range(17)]
    assert rates[4:] == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("name", "warmup", "steps", "rates"),
    [
        ("cosine", 0.0, 1, [1.0]),
        ("cosine", 1.0, 1, [1.0]),
        ("cosine", 0.0, 2, [1.0, 0.5]),
        ("cosine", 0.0, 3, [1.0, 0.75, 0.5]),
        ("cosine", 1.0, 4, [0.25, 0.5, 0.75, 1.0]),
        ("cosine", 0.5, 4, [0.5, 1.0, 1.0, 0.5]),
        ("constant", 0.0, 3, [1.0, 1.0, 1.0]),
        ("constant", 0.5, 4, [0.5, 1.0, 1.0, 1.0]),
    ],
)
def test_the_schedule_holds_at_its_edges(
    name: str, warmup: float, steps: int, rates: list[float]
) -> None:
    schedule = Schedule(name=name, warmup=warmup, final=0.5)  # type: ignore[arg-type]

    assert [factor(schedule, step, steps) for step in range(steps)] == pytest.approx(rates)


def by_torch(
    schedulers: list[lr_scheduler.LRScheduler], ends: list[int], steps: int
) -> list[float]:
    optimizer = schedulers[0].optimizer
    whole = lr_scheduler.SequentialLR(optimizer, schedulers, ends)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        whole.step()
    return rates


def test_a_rise_from_a_given_start_and_a_cosine_are_torch_s() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    rise = lr_scheduler.LinearLR(optimizer, start_factor=0.033, total_iters=8)
    fall = lr_scheduler.CosineAnnealingLR(optimizer, T_max=31, eta_min=0.05)
    schedule = Schedule(name="cosine", warmup=0.2, warmup_start=0.033, final=0.05)

    rates = [factor(schedule, step, 40) for step in range(40)]

    assert rates == pytest.approx(by_torch([rise, fall], [8], 40))
    assert rates[0] == 0.033 and rates[8] == 1.0


def test_a_linear_fall_is_torch_s() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    rise = lr_scheduler.LinearLR(optimizer, start_factor=0.25, total_iters=5)
    fall = lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=14)
    schedule = Schedule(name="linear", warmup=0.25, warmup_start=0.25, final=0.1)

    rates = [factor(schedule, step, 20) for step in range(20)]

    assert rates == pytest.approx(by_torch([rise, fall], [5], 20))


def test_wsd_rises_stays_and_falls_in_a_line_to_its_end() -> None:
    schedule = Schedule(name="wsd", warmup=0.1, cooldown=0.25, final=0.0)

    rates = [factor(schedule, step, 40) for step in range(40)]

    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:31] == [1.0] * 27  # the fall begins at step 30, from 1
    assert rates[30:] == pytest.approx([1 - i / 9 for i in range(10)])


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 0.5, 1.0])
def test_wsd_that_falls_from_the_warm_up_on_is_linear(warmup: float, steps: int) -> None:
    wsd = Schedule(name="wsd", warmup=warmup, cooldown=1 - warmup, final=0.1)
    linear = Schedule(name="linear", warmup=warmup, final=0.1)

    for step in range(steps):
        assert factor(wsd, step, steps) == pytest.approx(factor(linear, step, steps))


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "constant"])
@pytest.mark.parametrize("start", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("warmup", "cooldown"), [(0, 0), (0, 1), (1, 0), (0.5, 0.5), (0.1, 0.2)])
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_every_schedule_is_a_share_that_rises_once_and_falls_once(
    name: str, start: float, warmup: float, cooldown: float, steps: int
) -> None:
    schedule = Schedule(
        name=name,  # type: ignore[arg-type]
        warmup=warmup,
        warmup_start=start,
        cooldown=cooldown,
        final=0.25,
    )

    rates = [factor(schedule, step, steps) for step in range(steps)]

    top = rates.index(max(rates))
    assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)
    assert all(0 < rate <= 1 for rate in rates)
    if name != "constant" and steps == 10 and warmup < 1 and (name != "wsd" or cooldown):
        assert rates[-1] == pytest.approx(0.25)


def test_a_warm_up_of_a_given_start_begins_there_even_where_it_is_one_step() -> None:
    assert factor(Schedule(warmup=1.0, warmup_start=0.5), 0, 1) == 0.5
    assert factor(Schedule(warmup=1.0), 0, 1) == 1.0


def test_wsd_s_two_shares_are_told_by_name_where_they_are_more_than_all_steps() -> None:
    with pytest.raises(ConfigError) as caught:
        Schedule(name="wsd", warmup=0.25, cooldown=0.875)

    assert str(caught.value) == (
        "warmup 0.25 and cooldown 0.875 are more than all steps; together they should be at most "
        "1: give a cooldown of 0.75 or less"
    )
    assert Schedule(name="cosine", warmup=0.25, cooldown=0.875).cooldown == 0.875  # not in use
    assert Schedule(name="wsd", warmup=0.9, cooldown=0.1).warmup == 0.9
