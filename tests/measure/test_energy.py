"""The energy of a measurement, from a GPU's counter."""

import itertools
from collections.abc import Callable

from servekit.measure.energy import EnergyMeter


def test_counter_and_power_give_the_energy(eventually: Callable[..., None]) -> None:
    """Joules are counted between two moments; the power beside them shows whether the counter is right."""
    joules = itertools.count(1000, 7)
    meter = EnergyMeter(lambda: (float(next(joules)), 70.0), interval_s=0.01)
    eventually(lambda: len(meter.samples) > 5)
    meter.stop()
    (first_s, first_j, _), (last_s, last_j, _) = meter.samples[0], meter.samples[-1]
    told = meter.between(first_s, last_s)
    assert told["energy_j"] == round(last_j - first_j, 1)
    assert told["mean_power_of_trace_w"] == 70.0
    assert told["power_samples"] == len(meter.samples)


def test_a_host_without_a_gpu_has_no_energy(eventually: Callable[..., None]) -> None:
    """Without a counter, the meter ends and reports nothing."""
    asked: list[None] = []
    meter = EnergyMeter(lambda: asked.append(None), interval_s=0.01)
    eventually(lambda: asked)
    meter.stop()
    assert meter.between(0, 1e12) == {}
    assert len(asked) == 1
