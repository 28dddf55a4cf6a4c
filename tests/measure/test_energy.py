"""Replayed power: the energy is within half a percent of the truth, or the estimate says that it is not."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servekit.measure.figures.energy import Sample, count_energy, find_gaps, integrate_power
from tests.measure.replay import Power, every

STEADY = Power([(30, 16), (600, 71.5), (1, 16)])
STEPS = Power([(30, 16), *[(length, watts) for length in (3.3, 7.1, 1.7) for watts in (40.0, 72.0)] * 25, (1, 16)])


def test_constant_power_with_a_counter_in_steps() -> None:
    """A counter in steps of 100 ms gives the energy of ten minutes to a tenth of a percent, and so does the power."""
    samples = STEADY.samples(every(632))
    truth = STEADY.joules(630) - STEADY.joules(30)
    counted, traced = count_energy(samples, 30, 630, 72), integrate_power(samples, 30, 630, 0.1)
    assert counted.joules == pytest.approx(truth, rel=1e-3)
    assert counted.good
    assert traced.joules == pytest.approx(truth, rel=1e-3)
    assert traced.good


def test_steps_of_power() -> None:
    """Load that comes and goes every few seconds changes nothing in that."""
    end = 30 + 25 * 2 * (3.3 + 7.1 + 1.7)
    samples = STEPS.samples(every(end + 1))
    truth = STEPS.joules(end) - STEPS.joules(30)
    for estimate in (count_energy(samples, 30, end, 72), integrate_power(samples, 30, end, 0.1)):
        assert estimate.joules == pytest.approx(truth, rel=2e-3)
        assert estimate.good


def test_noise_of_the_power_is_not_in_the_counter() -> None:
    """A sensor whose samples scatter by a fifth does not change the counted energy; its own integral stays close."""
    noise = itertools.cycle((1.2, 0.8, 1.0, 0.9, 1.1))
    samples = [each._replace(watts=(each.watts or 0) * next(noise)) for each in STEADY.samples(every(632))]
    truth = STEADY.joules(630) - STEADY.joules(30)
    assert count_energy(samples, 30, 630, 72).joules == pytest.approx(truth, rel=1e-3)
    assert integrate_power(samples, 30, 630, 0.1).joules == pytest.approx(truth, rel=5e-3)


def test_gaps_are_counted_and_the_counter_bridges_them() -> None:
    """Without readings for 60 s the counter still has the energy; the gap is told with its length."""
    times = [t for t in every(632) if not (100 < t < 160 or 300 < t < 300.35)]
    samples = STEADY.samples(times)
    gaps = find_gaps(samples, 30, 630, 0.1)
    assert gaps.count == 2
    assert gaps.longest_s == pytest.approx(60)
    assert gaps.total_s == pytest.approx(60.4)
    assert count_energy(samples, 30, 630, 72).good
    truth = STEADY.joules(630) - STEADY.joules(30)
    assert count_energy(samples, 30, 630, 72).joules == pytest.approx(truth, rel=1e-3)
    traced = integrate_power(samples, 30, 630, 0.1)
    assert not traced.good, "nothing shows what the power was meanwhile"
    assert abs((traced.joules or 0) - truth) <= traced.error_j


def test_a_gap_at_the_beginning_makes_the_energy_uncertain() -> None:
    """Without readings around an end of the window the counter cannot tell what belongs to it."""
    samples = STEADY.samples([t for t in every(632) if not 20 < t < 45])
    estimate = count_energy(samples, 30, 630, 72)
    truth = STEADY.joules(630) - STEADY.joules(30)
    assert not estimate.good
    assert abs((estimate.joules or 0) - truth) <= estimate.error_j


def test_a_restarted_counter() -> None:
    """When the counter falls to zero, the power fills the one step; in the middle of a gap, the energy is uncertain."""
    samples = STEADY.samples(every(632), restarts=(200.05,))
    truth = STEADY.joules(630) - STEADY.joules(30)
    estimate = count_energy(samples, 30, 630, 72)
    assert estimate.good
    assert estimate.joules == pytest.approx(truth, rel=1e-3)
    in_gap = [each for each in samples if not 195 < each.t < 215]
    estimate = count_energy(in_gap, 30, 630, 72)
    assert not estimate.good
    assert abs((estimate.joules or 0) - truth) <= estimate.error_j


def test_a_lost_gpu_has_no_energy() -> None:
    """A GPU that stops answering before the end gives no energy, and the reason; never a part as if it were all."""
    samples = [each if each.t < 400 else Sample(each.t, None, None) for each in STEADY.samples(every(632))]
    for estimate in (count_energy(samples, 30, 630, 72), integrate_power(samples, 30, 630, 0.1)):
        assert estimate.joules is None
        assert not estimate.good
        assert estimate.why.endswith("came 230.1 s before the end")


def test_no_counter_and_no_power() -> None:
    """What NVML never reported is named."""
    samples = [Sample(t, None, None) for t in every(10)]
    assert count_energy(samples, 1, 9).why == "NVML reported no reading of the energy counter"
    assert integrate_power(samples, 1, 9, 0.1).why == "NVML reported no reading of power"
    late = STEADY.samples(every(10, start=5))
    assert count_energy(late, 1, 9).why == "the first reading of the energy counter came 4.0 s after the beginning"


def test_a_short_window_says_that_it_is_uncertain() -> None:
    """Five seconds are too short for steps of 100 ms."""
    estimate = count_energy(STEADY.samples(every(40)), 31, 36, 72)
    assert estimate.joules == pytest.approx(5 * 71.5, rel=0.02)
    assert not estimate.good


watts = st.floats(5, 72)
lengths = st.floats(0.05, 30)


@settings(deadline=None)
@given(
    parts=st.lists(st.tuples(lengths, watts), min_size=1, max_size=12),
    jitter=st.lists(st.floats(0, 0.05), min_size=1, max_size=7),
    outages=st.lists(st.tuples(st.floats(0, 70), st.floats(0.1, 30)), max_size=3),
    restarts=st.lists(st.floats(1, 70), max_size=2),
    start_j=st.one_of(st.floats(0, 200), st.floats(0, 1e7)),
    window=st.tuples(st.floats(0.2, 30), st.floats(1, 40)),
    step_s=st.sampled_from((0.02, 0.1, 0.5)),
)
def test_the_truth_is_within_the_bound(
    parts: list[tuple[float, float]],
    jitter: list[float],
    outages: list[tuple[float, float]],
    restarts: list[float],
    start_j: float,
    window: tuple[float, float],
    step_s: float,
) -> None:
    """Whatever the power does, and whatever is lost: the counted energy is within its bound, or there is none."""
    power = Power(parts)
    times = [t + wait for t, wait in zip(every(75), itertools.cycle(jitter), strict=False)]
    kept = [t for t in times if not any(begin < t < begin + length for begin, length in outages)]
    begin, end = window[0], sum(window)
    estimate = count_energy(power.samples(kept, start_j=start_j, restarts=restarts, step_s=step_s), begin, end, 72)
    truth = power.joules(end) - power.joules(begin)
    if estimate.joules is None:
        assert not kept or kept[-1] < end or kept[0] > begin
        return
    assert abs(estimate.joules - truth) <= estimate.error_j + 0.01
    if estimate.good:
        assert estimate.joules == pytest.approx(truth, rel=0.0051, abs=0.01)
