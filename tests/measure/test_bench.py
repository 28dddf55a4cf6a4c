"""`servekit bench`: which loads it runs, in which order and for how long, with a load generator of a few lines."""

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from servekit.cli.main import command
from servekit.errors import ConfigurationError
from servekit.measure.bench import serving, standard
from servekit.measure.bench.loads import Generator, Load
from servekit.measure.bench.standard import Bench, requests_for, run_bench
from servekit.measure.record import Record
from servekit.measure.recording.session import Job
from servekit.measure.report.runs import load_run, verify_run
from tests.conftest import KEY, ROOT, write_key_file
from tests.measure.replay import Run
from tests.measure.site import PROMPT, TOKENS, Site, running_site

RATE = 100
"""Requests per second."""
GENERATOR = f"""#!{sys.executable}
import json, os, pathlib, sys, time, urllib.request
words = sys.argv[3:]
assert sys.argv[1:3] == ["bench", "serve"]
given = dict(zip(words, words[1:]))
number = int(given["--num-prompts"])
with open(pathlib.Path(__file__).with_name("calls.jsonl"), "a") as calls:
    print(json.dumps(dict(given, key=os.environ.get("OPENAI_API_KEY"))), file=calls)
for _ in range(number):
    urllib.request.urlopen(given["--base-url"] + "/work").read()
time.sleep(number / {RATE})
if "--save-result" in words:
    path = pathlib.Path(given["--result-dir"], given["--result-filename"])
    path.write_text(json.dumps({{"completed": number, "request_throughput": {RATE}}}))
sys.exit(int(os.environ.get("FAIL", "0")))
"""


@pytest.fixture
def site() -> Iterator[Site]:
    """An endpoint that wants a key and counts."""
    with running_site() as site:
        site.status["endpoint"] = f"{site.url}/v1"
        site.status["plan"] |= {"authentication": True, "model": "/models/m"}
        yield site


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A program `vllm` that has `bench serve` alone."""
    path = tmp_path / "vllm"
    path.write_text(GENERATOR)
    path.chmod(0o755)
    return path


def bench(tmp_path: Path, site: Site, engine: Path, *words: str) -> Result:
    """Run `servekit bench` on two loads, without idle time."""
    fixed = ["--observe", site.url, "--engine", str(engine), "--dir", str(tmp_path / "out"), "--idle-s", "0"]
    keys = ["--api-keys-file", str(write_key_file(tmp_path, KEY))]
    loads = ["--loads", "text,images-3", "--streams", "2", "--seconds", "0.2", "--repetitions", "2"]
    return CliRunner().invoke(command, ["bench", *fixed, *keys, *loads, *words], catch_exceptions=False)


def calls(engine: Path) -> list[dict[str, Any]]:
    """Return the arguments of every call of the load generator."""
    return [json.loads(line) for line in engine.with_name("calls.jsonl").read_text().splitlines()]


def test_loads_take_turns_and_each_run_has_a_record(tmp_path: Path, site: Site, engine: Path) -> None:
    """Each load is ranged once; then each repetition measures every load after a warm-up that is not in its figures."""
    ended = bench(tmp_path, site, engine)
    assert ended.exit_code == 0, ended.output
    names = [f"{load}-2-sampled-{number}" for number in (1, 2) for load in ("text", "images-3")]
    runs = [load_run(tmp_path / "out" / f"{name}.json") for name in names]
    for run in runs:
        assert run.record.run.work is not None
        assert run.record.run.work.model_dump() == {
            "output_tokens": 24 * TOKENS,
            "prompt_tokens": 24 * PROMPT,
            "requests": 24,
        }
        assert run.record.disturbances == []
        assert verify_run(run)[1] == []
    assert [run.record.began for run in runs] == sorted(run.record.began for run in runs)

    made = calls(engine)
    ranging, rest = made[:2], made[2:]
    assert [each["--num-prompts"] for each in ranging] == ["8", "8"]
    assert [each["--num-prompts"] for each in rest] == ["20", "24"] * 4, "warm-up, run"
    assert [each["--dataset-name"] for each in rest] == [*["random"] * 2, *["random-mm"] * 2] * 2
    seeds = [each["--seed"] for each in made]
    assert len(set(seeds)) == len(seeds), "no run finds its prompts in the prefix cache"
    assert {each["key"] for each in made} == {KEY}
    assert KEY not in (tmp_path / "out" / f"{names[0]}.json").read_text()
    assert "4 runs, at least 0.0 h" in ended.stderr


def plan(tmp_path: Path, engine: Path, site: Site, seconds: float) -> Bench:
    """Return a benchmark of one load, two streams, once."""
    generator = Generator(str(engine), site.url, "m", "/m")
    return Bench([Load("text", 2, "greedy")], 1, seconds, 0, tmp_path / "out", site.url, generator)


def test_a_run_is_not_too_short(tmp_path: Path, site: Site, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ended too early is measured again with more requests and other prompts; its record is discarded."""
    jobs: list[Job] = []
    durations = iter((200.0, 590.0, 640.0))
    template = Run(run_s=20).record(tmp_path)

    def measured(job: Job) -> tuple[Record, int]:
        jobs.append(job)
        for path in (job.out, job.trace_file):
            assert not path.exists()
            path.touch()
        part = template.run.model_copy(update={"duration_s": next(durations)})
        return template.model_copy(update={"run": part}), 0

    monkeypatch.setattr(standard, "measure", measured)
    monkeypatch.setattr(standard, "_range", lambda *_: 10.0)
    ((path, record, code),) = run_bench(plan(tmp_path, engine, site, 600))
    assert (path.name, code) == ("text-2-greedy-1.json", 0)
    assert record is not None
    assert record.run.duration_s == 640
    given = [dict(itertools.pairwise(job.command)) for job in jobs]
    assert [int(each["--num-prompts"]) for each in given] == [6600, 19800, 20136]
    assert len({each["--seed"] for each in given}) == 3


def test_a_ranging_run_is_long_enough(tmp_path: Path, site: Site, engine: Path) -> None:
    """One that is over in a moment is repeated with the requests of a fifth of a run's time."""
    assert standard._range(plan(tmp_path, engine, site, 5), Load("text", 2, "greedy"), 1) == RATE
    assert [each["--num-prompts"] for each in calls(engine)] == ["8", "100"]


SERVEKIT = """
import signal, sys
from tests.measure.replay import Run
from tests.measure.site import Site
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
word, power, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
if word == "check":
    sys.exit(3 if power == "wrong" else 0)
print("serves", power, flush=True)
if power == "broken":
    sys.exit(4)
site = Site(port)
site.status["endpoint"] = site.url + "/v1"
site.status["plan"] |= {"argv": [power], "authentication": False}
site.serve_forever()
"""


def test_two_configurations_one_after_the_other(
    tmp_path: Path, engine: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--serve` starts each configuration, measures it, stops it, and writes the report with the last as baseline."""
    monkeypatch.setattr(serving, "PROGRAM", (sys.executable, "-c", SERVEKIT))
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
    fixed = ["--engine", str(engine), "--dir", str(tmp_path), "--idle-s", "0", "--observe-port", str(free_port)]
    loads = ["--loads", "text", "--streams", "2", "--seconds", "0.2", "--repetitions", "1"]
    both = ["--serve", f"new=strong {free_port}", "--serve", f"old=weak {free_port}"]
    ended = CliRunner().invoke(command, ["bench", *fixed, *loads, *both], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    for name, power in (("new", "strong"), ("old", "weak")):
        records = [load_run(path).record for path in sorted((tmp_path / name).glob("*.json"))]
        assert [each.name for each in records] == ["text-2-sampled"]
        assert {tuple(each.identity.arguments) for each in records} == {(power,)}
        assert (tmp_path / f"{name}.log").read_text() == f"serves {power}\n"
    head = (tmp_path / "report.md").read_text().splitlines()[0]
    assert head == "|  | text-2-sampled (baseline) | text-2-sampled | Δ |"
    assert f"servekit report {tmp_path}/new/*.json --baseline {tmp_path}/old/*.json" in ended.stderr

    broken = [*fixed[:2], "--dir", str(tmp_path / "2"), *fixed[4:], "--serve", f"a=broken {free_port}"]
    with pytest.raises(ConfigurationError, match=r"a.log: error: servekit serve ended with exit code 4; read the end"):
        CliRunner().invoke(command, ["bench", *broken], catch_exceptions=False)


def test_every_configuration_is_checked_before_the_first_starts(
    tmp_path: Path, engine: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `servekit check` rejects, names given twice, records that exist and open quotes are told at once."""
    monkeypatch.setattr(serving, "PROGRAM", (sys.executable, "-c", SERVEKIT))
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
    words = ["bench", "--engine", str(engine), "--dir", str(tmp_path), "--observe-port", str(free_port)]
    good = ["--serve", f"good=strong {free_port}"]
    with pytest.raises(
        ConfigurationError, match=r"bad: servekit check ended with exit code 3; mend what it says above"
    ):
        CliRunner().invoke(command, [*words, *good, "--serve", f"bad=wrong {free_port}"], catch_exceptions=False)
    (tmp_path / "old").mkdir()
    with pytest.raises(ConfigurationError) as caught:
        CliRunner().invoke(command, [*words, *good, *good, "--serve", "old='"], catch_exceptions=False)
    told = {finding.message for finding in caught.value.findings}
    assert told == {"is given twice", "exists already", "old: No closing quotation"}
    assert not list(tmp_path.glob("*.log"))


def test_another_endpoint_is_not_measured_instead(
    tmp_path: Path, site: Site, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--serve` does not start where a servekit answers already, and knows no other endpoint."""
    monkeypatch.setattr(serving, "PROGRAM", (sys.executable, "-c", "pass"))
    words = ["bench", "--engine", str(engine), "--dir", str(tmp_path / "out"), "--serve", "a=--model m"]
    with pytest.raises(ConfigurationError, match=r"another servekit answers here; stop it first"):
        CliRunner().invoke(command, [*words, "--observe-port", site.url.rpartition(":")[2]], catch_exceptions=False)
    assert "excludes --observe" in CliRunner().invoke(command, [*words, "--observe", site.url]).output


def test_a_failing_generator(tmp_path: Path, site: Site, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the ranging run fails nothing is measured, and the load generator's last lines are told."""
    monkeypatch.setenv("FAIL", "3")
    with pytest.raises(ConfigurationError, match="text-2-sampled: the load generator ended with exit code 3"):
        bench(tmp_path, site, engine)
    assert list((tmp_path / "out").iterdir()) == []


def test_records_are_not_overwritten(tmp_path: Path, site: Site, engine: Path) -> None:
    """A record that exists stops the benchmark before its first request."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "images-3-2-sampled-2.json").touch()
    with pytest.raises(ConfigurationError, match="exists already; choose another --dir"):
        bench(tmp_path, site, engine)
    assert site.requests == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--loads", "audio"), "--loads: must be one of text, images-1, images-3 (got audio)"),
        (("--streams", "8,x"), "--streams: must be a whole number above zero (got x)"),
        (("--sampling", "beam"), "--sampling: must be one of sampled, greedy (got beam)"),
        (("--streams", ","), "--streams: names nothing"),
    ],
)
def test_wrong_choices(words: tuple[str, ...], message: str) -> None:
    """A kind of load that does not exist is rejected with those that do."""
    ended = CliRunner().invoke(command, ["bench", *words])
    assert message in ended.output


def test_no_endpoint() -> None:
    """Without an endpoint the message says what to do."""
    with pytest.raises(ConfigurationError, match="no answer of servekit; start the endpoint first"):
        CliRunner().invoke(command, ["bench", "--observe", "http://127.0.0.1:9"], catch_exceptions=False)


def test_sampling_and_images_of_a_load() -> None:
    """The load generator is asked for Gemma's sampling or for none, and for the load's images."""
    generator = Generator("vllm", "http://h:1", "name", "/m")
    sampled = generator.command(Load("images-3", 8, "sampled"), 16, 1)
    greedy = generator.command(Load("text", 8, "greedy"), 16, 1)
    pairs = dict(itertools.pairwise(sampled))
    assert (pairs["--temperature"], pairs["--top-p"], pairs["--top-k"]) == ("1.0", "0.95", "64")
    assert pairs["--random-mm-base-items-per-request"] == "3"
    assert dict(itertools.pairwise(greedy))["--temperature"] == "0"
    assert "--top-k" not in greedy
    assert Load("text", 8, "greedy").name == "text-8-greedy"


def test_how_many_requests() -> None:
    """A run has whole rounds of its streams, at least two, and about its seconds."""
    load = Load("text", 32, "sampled")
    assert requests_for(load, 10.0, 600) == 6016
    assert requests_for(load, 0.01, 600) == 64


def test_the_temperature_settles_before_the_run(tmp_path: Path, site: Site, engine: Path) -> None:
    """Without a GPU one warm-up is enough; its requests belong neither to the idle time nor to the run."""
    ended = bench(tmp_path, site, engine, "--loads", "text", "--repetitions", "1", "--idle-s", "0.5")
    assert ended.exit_code == 0, ended.output
    record = Record.model_validate_json((tmp_path / "out" / "text-2-sampled-1.json").read_bytes())
    assert record.idle is not None
    assert record.idle.duration_s == pytest.approx(0.5, abs=0.4)
    assert record.run.begin_s > record.idle.duration_s
    assert record.run.work is not None
    assert record.run.work.requests == 24
    assert [call["--num-prompts"] for call in calls(engine)] == ["8", "20", "24"]
