"""The live recording rules and a record of the same load agree: both from one replayed trace."""

import subprocess
from pathlib import Path

import pytest
import yaml

from servekit.measure.figures.compute import compute_record
from servekit.measure.trace import Trace
from tests.deploy.prometheus import FOLDER, program
from tests.measure.replay import GPU, Run

NEEDED = (
    *("vllm:generation_tokens_total", "vllm:request_success_total"),
    *("servekit_canary_tokens_total", "servekit_gpu_energy_joules_total"),
)
ENERGY = f'servekit_gpu_energy_joules_total{{gpu="{GPU}",name="NVIDIA L4"}}'


def with_energy(t: float, page: dict[str, str]) -> dict[str, str]:
    """Add servekit's metric of the GPU's counter, 16 W before the load and 71.5 W in it."""
    return page | {ENERGY: f"{5e6 + 16 * min(t, 0) + 71.5 * max(t, 0):.3f}"}


def series(trace: Trace) -> list[dict[str, str]]:
    """Return the scrapes of a trace as promtool's series, one value a second."""
    values: dict[str, list[str]] = {}
    for _, page in trace.pages():
        for sample, value in page.items():
            if sample.startswith(NEEDED):
                values.setdefault(sample, []).append(value)
    return [
        {"series": f'{name}{{job="servekit",instance="a"{"," + rest if rest else "}"}', "values": " ".join(found)}
        for sample, found in values.items()
        for name, _, rest in [sample.partition("{")]
    ]


@pytest.mark.parametrize("canaries", [0, 300])
def test_rules_and_record_agree(tmp_path: Path, canaries: int) -> None:
    """Tokens and requests per Wh, J per token and watts of the rules are the record's, with canaries and without."""
    trace = Run(page=with_energy, canaries=canaries).trace(tmp_path)
    steady = compute_record(trace).steady
    assert steady is not None
    figures = {
        "instance:servekit_tokens_per_watt_hour:rate5m": steady.efficiency.output_tokens_per_wh,
        "instance:servekit_requests_per_watt_hour:rate5m": steady.efficiency.requests_per_wh,
        "instance:servekit_joules_per_token:rate5m": steady.efficiency.j_per_output_token,
        "instance:servekit_gpu_power_watts:rate5m": steady.energy.mean_power_w,
    }
    trial = {
        "rule_files": [str(FOLDER / "rules" / "recording.yml")],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "1s",
                "input_series": series(trace),
                "promql_expr_test": [
                    {
                        "expr": f"abs({rule} / {figure} - 1) < bool 0.01",
                        "eval_time": "9m",
                        "exp_samples": [{"labels": '{instance="a",job="servekit"}', "value": 1}],
                    }
                    for rule, figure in figures.items()
                ],
            }
        ],
    }
    path = tmp_path / "trial.yml"
    path.write_text(yaml.safe_dump(trial))
    made = subprocess.run([program("promtool"), "test", "rules", path], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
