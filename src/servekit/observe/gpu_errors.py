"""A GPU's errors as metric families: Xids, ECC errors, remapped rows."""

from collections.abc import Iterator, Sequence
from typing import Final

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from servekit.nvml import GpuErrors
from servekit.preflight.host.gpus import GpuFacts

_LABELS: Final = ("gpu", "name")


class GpuErrorCollector(Collector):
    """What the GPUs report of their errors; no family that NVML does not tell.

    servekit_gpu_xid_errors_total{gpu="GPU-1234",name="NVIDIA L4"} 0.0             since servekit was started
    servekit_gpu_last_xid{...} 79.0                                                absent before the first
    servekit_gpu_ecc_errors_total{...,kind="uncorrected"} 0.0                      since the driver was loaded
    servekit_gpu_remapped_rows{...,cause="uncorrected"} 0.0
    servekit_gpu_remapping_pending{...} 0.0
    servekit_gpu_remapping_failed{...} 0.0
    """

    def __init__(self, gpus: Sequence[GpuFacts], errors: GpuErrors) -> None:
        self._gpus = gpus
        self._errors = errors

    def collect(self) -> Iterator[Metric]:
        """Yield the families of this moment."""
        xid = CounterMetricFamily("servekit_gpu_xid_errors", "Xid errors since servekit was started.", labels=_LABELS)
        last = GaugeMetricFamily("servekit_gpu_last_xid", "The number of the last Xid error.", labels=_LABELS)
        ecc = CounterMetricFamily(
            "servekit_gpu_ecc_errors", "ECC errors since the driver was loaded.", labels=(*_LABELS, "kind")
        )
        rows = GaugeMetricFamily(
            "servekit_gpu_remapped_rows", "Rows of memory replaced by spare ones.", labels=(*_LABELS, "cause")
        )
        pending = GaugeMetricFamily(
            "servekit_gpu_remapping_pending", "1 while a remapping waits for a reset.", labels=_LABELS
        )
        failed = GaugeMetricFamily(
            "servekit_gpu_remapping_failed", "1 when no spare row was left: replace the card.", labels=_LABELS
        )
        xids = self._errors.xids()
        for gpu in self._gpus:
            labels = (gpu.uuid, gpu.name)
            if gpu.uuid in xids:
                count, number = xids[gpu.uuid]
                xid.add_metric(labels, count)
                if number is not None:
                    last.add_metric(labels, number)
            counts = self._errors.counts(gpu.uuid)
            for kind, errors in zip(("corrected", "uncorrected"), counts.ecc, strict=True):
                if errors is not None:
                    ecc.add_metric((*labels, kind), errors)
            if counts.remapped:
                rows.add_metric((*labels, "corrected"), counts.remapped[0])
                rows.add_metric((*labels, "uncorrected"), counts.remapped[1])
                pending.add_metric(labels, counts.remapped[2])
                failed.add_metric(labels, counts.remapped[3])
        yield from (family for family in (xid, last, ecc, rows, pending, failed) if family.samples)
