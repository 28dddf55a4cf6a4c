"""What each key has used, as Prometheus sees it."""

import re
from pathlib import Path

from prometheus_client import generate_latest

from servekit.observe.metrics import make_registry
from servekit.observe.usage_metrics import usage_families
from servekit.serve.books.audit import Audit, KeyChanges
from servekit.serve.books.bookkeeper import Bookkeeper
from servekit.serve.guard import LEDGER_FILE_NAME, GuardSettings
from servekit.serve.guard.inside.servekit_guard.usage.ledger import Ledger, make_ledger

PRICES = {"gpu_hour_price": 0.7, "kwh_price": 0.0, "kwh_co2_grams": 0.0}
FIRST = "sk-first-0123456789abcdef"


def counted(folder: Path) -> Bookkeeper:
    """Return the bookkeeper of a run with one name, of which one key expires later than the other."""
    make_ledger(folder / LEDGER_FILE_NAME)
    ledger = Ledger(str(folder / LEDGER_FILE_NAME))
    for number, value in enumerate((3, 1, 2, 0, 70, 500, 4, 2_500_000, 1)):
        ledger.cells[ledger.place("a") + number] += value
    keys = folder / "keys"
    keys.touch(0o600)
    lines = "expires=2027-01-01 # a", "expires=2027-02-01 # a", "# b", "expires=1970-01-01 # old"
    keys.write_text("".join(f"{FIRST}{number} {line}\n" for number, line in enumerate(lines)))
    settings = GuardSettings(state_dir=folder, max_in_flight=1, api_keys_file=keys)
    audit = Audit(folder)
    books = Bookkeeper(folder, settings, audit, KeyChanges(keys, audit))
    books.keys.compare(0)
    return books


def test_every_figure_of_a_key(tmp_path: Path) -> None:
    """Counters by name, the last expiry of a name, the state of the books, and prices once one is set."""
    books = counted(tmp_path)
    text = generate_latest(make_registry(lambda: usage_families(books, PRICES))).decode()
    lines = [line for line in text.splitlines() if re.match(r"servekit_(?!process)", line) and "_created" not in line]
    assert lines == [
        'servekit_key_requests_total{key="a",outcome="ok"} 3.0',
        'servekit_key_requests_total{key="a",outcome="cancelled"} 1.0',
        'servekit_key_requests_total{key="a",outcome="refused"} 2.0',
        'servekit_key_requests_total{key="a",outcome="failed"} 0.0',
        'servekit_key_prompt_tokens_total{key="a"} 70.0',
        'servekit_key_output_tokens_total{key="a"} 500.0',
        'servekit_key_images_total{key="a"} 4.0',
        'servekit_key_in_flight_seconds_total{key="a"} 2.5',
        'servekit_key_in_flight{key="a"} 1.0',
        'servekit_key_expiry_timestamp_seconds{key="a"} 1.80144e+09',
        'servekit_key_expiry_timestamp_seconds{key="old"} 0.0',
        "servekit_books_broken 0.0",
        "servekit_books_lost_total 0.0",
        "servekit_gpu_hour_price 0.7",
        "servekit_kwh_price 0.0",
        "servekit_kwh_co2_grams 0.0",
        'servekit_log_lines_lost_total{log="audit"} 0.0',
    ]
    assert "price" not in generate_latest(make_registry(lambda: usage_families(books, {"kwh_price": 0.0}))).decode()
