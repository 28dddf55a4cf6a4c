"""The parts of processor_config.json, as far as a wrong value ends vLLM's start or the first image.

transformers 5.8 takes any value here and fails later, in the middle of its arithmetic. It builds every part; of those
for video and audio, which nobody can send, only the constructor runs.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from servekit.preflight.checkpoint.schema.faults import Strict, faults_of

_SIDES: Final = (
    {"height", "width"},
    {"shortest_edge"},
    {"shortest_edge", "longest_edge"},
    {"longest_edge"},
    {"max_height", "max_width"},
)
"""The keys of a size (transformers 5.8, image_processing_utils.py)."""


def _sides(size: dict[str, Any]) -> dict[str, Any]:
    if size.keys() not in _SIDES:
        raise ValueError("must have height and width, or shortest_edge")
    return size


_Switch = bool | int | float | str | None
"""Anything that Python can take for true or false and can hash."""
_Size = (
    Annotated[dict[str, Any], AfterValidator(_sides)] | Annotated[list[Any], Field(min_length=2)] | int | bool | None
)
_AutoMap = dict[str, Any] | list[Any] | str
_Number = float | bool


class _Frames(Strict):
    size: _Size = None
    crop_size: _Size = None
    pad_size: _Size = None


class _Image(_Frames):
    do_normalize: _Switch = None
    do_rescale: _Switch = None
    rescale_factor: _Switch = None
    resample: Literal[0, 2, 3] = 3
    image_mean: list[_Switch] | _Switch = None
    image_std: list[_Switch] | _Switch = None
    auto_map: _AutoMap = ""
    do_center_crop: Any = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Check what is read: null means the class's default, which rescales and does not normalize."""
        read = {"rescale_factor": self.do_rescale is None or bool(self.do_rescale)}
        read |= dict.fromkeys(("image_mean", "image_std"), bool(self.do_normalize))
        for name in [name for name, is_read in read.items() if is_read]:
            value = getattr(self, name)
            numbers = value if isinstance(value, list) and name != "rescale_factor" else [value]
            if not all(isinstance(each, int | float | None) for each in numbers):
                raise ValueError(f"{name} must be a number")
        if self.do_center_crop and self.crop_size is None:
            raise ValueError("do_center_crop needs crop_size")
        return self


class _Audio(Strict):
    sampling_rate: Annotated[int, Field(ge=1000)] = 16_000
    feature_size: bool | Annotated[int, Field(ge=0)] = 128
    frame_length_ms: Literal[True] | Annotated[float, Field(gt=0)] = 20.0
    hop_length_ms: _Number = 10.0
    min_frequency: _Number = 0.0
    max_frequency: _Number = 8000.0
    mel_floor: list[float] | _Number | None = 0.0
    per_bin_mean: list[_Number] | None = None
    per_bin_stddev: list[_Number] | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.min_frequency > self.max_frequency:
            raise ValueError("min_frequency is above max_frequency")
        if {len(each) for each in (self.per_bin_mean, self.per_bin_stddev) if each is not None} - {self.feature_size}:
            raise ValueError("per_bin_mean and per_bin_stddev need a value for each of feature_size")
        return self


_PARTS: dict[str, type[Strict]] = {"image_processor": _Image, "video_processor": _Frames, "feature_extractor": _Audio}


def processor_faults(part: str, section: Mapping[str, Any]) -> dict[str, str]:
    """Return what is wrong in a part such as `image_processor`, by key."""
    return {key.partition(".")[0]: why for key, why in faults_of(_PARTS[part], section).items()}
