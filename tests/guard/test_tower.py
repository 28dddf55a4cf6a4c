"""Several images in one pass of the image tower, inside the installed vLLM: the embeddings are vLLM's own."""

from typing import Any

import pytest

from servekit.demo.build import build_demo_model
from tests.guard.test_inside_vllm import run_inside

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

PROGRAM = """
import json, torch
from types import SimpleNamespace
from PIL import Image
from transformers import AutoProcessor
from vllm.config import set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader import get_model
from vllm.multimodal import inputs
from servekit_guard.images import tower

limits = {"image": 3, "audio": 0, "video": 0}
args = EngineArgs(FOLDER, dtype="bfloat16", enforce_eager=True, max_model_len=512, limit_mm_per_prompt=limits)
config = args.create_engine_config()
with set_current_vllm_config(config):
    init_distributed_environment(1, 0, "file://" + FOLDER + "/rendezvous", 0, "gloo")
    initialize_model_parallel(1, 1)
    model = get_model(vllm_config=config)

sizes = [(448, 448), (1024, 768), (20, 400), (448, 448), (31, 17), (400, 20), (448, 448), (700, 701), (64, 64)]
process = AutoProcessor.from_pretrained(FOLDER).image_processor
noise = [Image.effect_noise(size, 200).convert("RGB") for size in sizes]
features = process(noise, return_tensors="pt")
pixels, positions = features["pixel_values"].bfloat16(), features["image_position_ids"]
counts = []
run = type(model.vision_tower).forward

def counted(tower, pixels, *others, **named):
    counts.append(list(pixels.shape[:2]))
    return run(tower, pixels, *others, **named)

def embed(first, last):
    images = {"pixel_values": pixels[first:last], "pixel_position_ids": positions[first:last]}
    with torch.inference_mode():
        return model._process_image_input(images)

type(model.vision_tower).forward = counted
before, passes = embed(0, 9), len(counts)
worker = SimpleNamespace(get_model=lambda: model)
loaded = tower.images_together(lambda worker, **named: named)(worker, load_dummy_weights=False)
counts.clear()
after = embed(0, 9)
shapes = list(counts)
alone = [embed(number, number + 1)[0] for number in range(9)]
tower.compile_layers(model.vision_tower)
compiled = embed(0, 9), [embed(number, number + 1)[0] for number in range(9)]
counts.clear()
longer = {name: torch.nn.functional.pad(each[:3], (0, 0, 0, 10_080 - each.shape[1]), value=-1)
          for name, each in (("pixel_values", pixels), ("pixel_position_ids", positions))}
with torch.inference_mode():
    longer = model._process_image_input(longer)

def far(one, other):
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(one, other, strict=True))

def straight(*parts):
    field = inputs.MultiModalBatchedField()
    elements = [inputs.MultiModalFieldElem(data=part, field=field) for part in parts]
    return field.reduce_data(elements, device="cpu", pin_memory=True)

embedder = model.vision_tower.patch_embedder
padding = (positions == -1).all(-1)
print(json.dumps({
    "loaded": loaded,
    "passes": [passes, shapes],
    "longer": [len(counts), far(longer, before[:3])],
    "rows": [[[each.dtype.itemsize, *each.shape] for each in side] for side in (before, after)],
    "far": [far(rows, before) for rows in (after, alone, *compiled)],
    "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
    "images differ by": far(before[:1], before[3:4]),
    "straight": torch.equal(straight(*pixels[:3]), pixels[:3]),
    "unlike": [list(each.shape) for each in straight(pixels[0, :5], pixels[1, :7])],
    "positions": torch.equal(
        embedder._position_embeddings(positions, padding),
        type(embedder)._position_embeddings(embedder, positions, padding),
    ),
}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the program finds."""
    folder = tmp_path_factory.mktemp("checkpoint") / "demo"
    build_demo_model(folder, quantized=False)
    return run_inside(PROGRAM.replace("FOLDER", repr(str(folder))))


def test_images_share_passes(found: Any) -> None:
    """Nine images take three passes, each as long as its longest image; loading a model changes nothing else."""
    assert found["loaded"] == {"load_dummy_weights": False}
    assert found["passes"] == [9, [[4, 576], [4, 576], [1, 594]]]


def test_longer_images_have_passes_of_their_own(found: Any) -> None:
    """Where an image may have 1,120 tokens, four in a pass would need more memory than any start rehearses."""
    passes, far = found["longer"]
    assert passes == 3
    assert far < 0.02


def test_each_image_gets_its_own_embeddings(found: Any) -> None:
    """Images of many sizes get as many rows as from vLLM, in their order, and the same values but for rounding."""
    before, after = found["rows"]
    assert after == before
    assert max(found["far"]) < 0.02
    assert found["images differ by"] > 0.1


def test_layers_are_compiled_once(found: Any) -> None:
    """Two graphs, before and after attention, serve all layers and images of every size, alone and together."""
    assert found["graphs"] == 2


def test_positions_are_those_of_one_hot_vectors(found: Any) -> None:
    """Looked-up position embeddings are bit for bit those that transformers multiplies out."""
    assert found["positions"]


def test_images_go_straight_to_their_places(found: Any) -> None:
    """A batch is what vLLM joins, without pinned memory between; images of unlike shapes stay a list."""
    assert found["straight"]
    assert [shape[0] for shape in found["unlike"]] == [5, 7]
