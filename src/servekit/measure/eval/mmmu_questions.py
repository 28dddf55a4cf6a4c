"""The questions of MMMU-Pro as a Hugging Face data set, from a folder or the hub. lmms-eval's Python runs this."""

import glob
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

HUB: Final = "MMMU/MMMU_Pro"
FOLDERS: Final[Mapping[str, str]] = {"standard": "standard (10 options)", "vision": "vision"}
"""The data set's folders, in the hub's repository and in a local copy."""
_COLUMNS: Final = {"standard": {"question", "image_1"}, "vision": {"image"}}
_ALWAYS: Final = {"id", "subject", "options", "answer"}
_IMAGE: Final = re.compile(r"image(_\d)?")


class ProblemError(Exception):
    """What keeps the evaluation from starting: what is wrong, where, and what to do."""

    def __init__(self, what: str, at: str, remedy: str) -> None:
        super().__init__(what)
        self.at, self.remedy = at, remedy


def load(data: str, subset: str) -> Any:
    """Return the questions of a half, from the folder `data`, or the hub if it is empty. Raises ProblemError."""
    import datasets

    at = data or HUB
    try:
        folder = Path(data or _download(subset))
        table = _read(next((each for each in (folder / FOLDERS[subset], folder / subset) if each.is_dir()), folder))
    except Exception as error:
        what = f"cannot be loaded: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        here = f"give a copy of the hub's {HUB}: a folder {FOLDERS[subset]!r} with Parquet or Arrow files"
        raise ProblemError(what, at, here if data else f"check the network; without one, {here} by --data") from error
    if missing := (_ALWAYS | _COLUMNS[subset]) - set(table.column_names):
        what = f"has no column {', '.join(sorted(missing))}"
        raise ProblemError(what, at, f"give questions as in {HUB}, {FOLDERS[subset]!r}")
    for name in filter(_IMAGE.fullmatch, table.column_names):  # some Parquet files have only bytes and paths
        table = table.cast_column(name, datasets.Image())
    return table


def without_images(table: Any) -> Any:
    """Return the same questions without their images, which take time to decode."""
    return table.remove_columns(list(filter(_IMAGE.fullmatch, table.column_names)))


def _download(subset: str) -> str:
    """Return the hub's data set in the local cache, after downloading what it lacks."""
    from huggingface_hub import snapshot_download

    return str(snapshot_download(HUB, repo_type="dataset", allow_patterns=f"{FOLDERS[subset]}/*"))


def _read(folder: Path) -> Any:
    """Return the test split in a folder: as `save_to_disk` writes it, or Parquet files."""
    import datasets

    if (folder / "dataset_dict.json").exists():
        return datasets.load_from_disk(str(folder))["test"]
    if (folder / "state.json").exists():
        return datasets.load_from_disk(str(folder))
    files = sorted(folder.glob("test*.parquet")) or sorted(folder.glob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"no Parquet or Arrow files in {folder}")
    return datasets.load_dataset("parquet", data_files=[glob.escape(str(file)) for file in files], split="train")
