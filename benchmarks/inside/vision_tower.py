"""Where the time of Gemma 4's image tower goes: the launches of kernels, or the GPU.

Runs under the engine's Python, with the guard's folder on PYTHONPATH: gemma-4-E4B's tower with random weights, images
of 448 x 448. Prints one JSON line for each way to run it: milliseconds an image on the wall clock, on this thread and
on the GPU, the peak of memory, whether the result is that of vLLM's own way, one image after the other, and how far it
is from the same in FP32.
"""

import copy
import importlib
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

ROUNDS = 8
PATCHES, SIDE = 2520, 48
"""Places for patches of an image, and the patches along each side of one of 448 x 448."""

COUNTS = (4, 1, 2, 3, 8, 16)

torch: Any = importlib.import_module("torch")


def main() -> None:
    """Measure each way."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tower = make_tower(layers=16 if device == "cuda" else 1).to(device=device, dtype=torch.bfloat16).eval()
    grid = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="xy")
    places = torch.nn.functional.pad(torch.stack(grid, -1).reshape(-1, 2), (0, 0, 0, PATCHES - SIDE**2), value=-1)
    images = torch.rand(16, PATCHES, 768, dtype=torch.bfloat16).to(device)
    positions = places.repeat(16, 1, 1).to(device)
    images[positions[..., 0] < 0] = 0

    def one_by_one(count: int) -> Any:
        return torch.cat([tower(images[i : i + 1], positions[i : i + 1]).last_hidden_state for i in range(count)])

    def together(count: int) -> Any:
        return tower(images[:count], positions[:count]).last_hidden_state

    def unpadded(count: int) -> Any:
        return tower(images[:count, : SIDE**2], positions[:count, : SIDE**2]).last_hidden_state

    with torch.inference_mode():
        most = 16 if device == "cuda" else 2
        exact = copy.deepcopy(tower).float()
        expected = (
            one_by_one(most),
            torch.cat([exact(images[i : i + 1].float(), positions[i : i + 1]).last_hidden_state for i in range(most)]),
        )
        del exact
        show("vllm: one by one, one-hot", one_by_one, min(4, most), expected)
        for count in (1, 4) if device == "cuda" else ():
            show(f"{count} together", together, count, expected)
            show(f"{count} together, no padding", unpadded, count, expected)
        ours = importlib.import_module("servekit_guard.images.tower")
        ours.look_up_positions(tower)
        show(f"{min(4, most)} together, no padding, positions looked up", unpadded, min(4, most), expected)
        ours.compile_layers(tower)
        began_s = time.monotonic()
        unpadded(min(4, most))
        print(json.dumps({"compiled_s": round(time.monotonic() - began_s, 1)}), flush=True)
        for count in COUNTS if device == "cuda" else (2,):
            show(f"{count} together, no padding, compiled", unpadded, count, expected)
        if device == "cuda":
            copies(images.cpu())
            kernels(unpadded)


def copies(images: Any) -> None:
    """Time how images come to the GPU: joined in pinned memory, as vLLM does, and each straight to its place."""
    inputs: Any = importlib.import_module("vllm.multimodal.inputs")
    field, reduce_data = inputs.MultiModalBatchedField(), inputs.MultiModalBatchedField.reduce_data
    straight = importlib.import_module("servekit_guard.images.tower").straight_to_gpu(reduce_data)

    def copy(reduce: Any, count: int) -> None:
        fresh = [inputs.MultiModalFieldElem(data=image.clone(), field=field) for image in images[:count]]
        begin_s = time.perf_counter()
        reduce(field, fresh, device="cuda", pin_memory=True)
        took_s.append(time.perf_counter() - begin_s)

    for name, reduce in {"vllm": reduce_data, "servekit": straight}.items():
        for count in (3, 6, 12):
            took_s: list[float] = []
            for _ in range(2 * ROUNDS):
                copy(reduce, count)
                torch.cuda.synchronize()
            first, *rest = (1000 * each / count for each in took_s)
            told = {"first_ms": round(first, 2), "ms": round(statistics.median(rest), 2)}
            print(json.dumps({"copy": name, "images": count} | told), flush=True)


def kernels(run: Callable[[int], Any]) -> None:
    """Print which kernels a pass of four images spends its time in."""
    with torch.profiler.profile() as profiler:
        run(4)
    print(profiler.key_averages().table(sort_by="cuda_time_total", row_limit=24, max_name_column_width=90))


def make_tower(layers: int) -> Any:
    """Return the tower as vLLM makes it."""
    config: Any = importlib.import_module("transformers.models.gemma4.configuration_gemma4").Gemma4VisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=12,
        head_dim=64,
        position_embedding_size=10_240,
        default_output_length=280,
        use_clipped_linears=True,
    )
    torch.manual_seed(0)
    tower = importlib.import_module("transformers").AutoModel.from_config(config=config)
    for name, bound in tower.named_buffers():  # as in real checkpoints, layers clip
        if name.endswith(("put_min", "put_max")):
            bound.fill_(-40 if name.endswith("min") else 40)
    return tower


def show(name: str, run: Callable[[int], Any], count: int, expected: Any = None) -> None:
    """Time a way and print it."""
    cuda = torch.cuda.is_available()
    for _ in range(2):
        result = run(count)
    before = 0
    if cuda:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
    wall_s, thread_s = time.perf_counter(), time.thread_time()
    for _ in range(ROUNDS if cuda else 1):
        run(count)
    launched_s = time.perf_counter() - wall_s
    if cuda:
        end.record()
        torch.cuda.synchronize()
    scale = 1000 / count / (ROUNDS if cuda else 1)
    told = {
        "way": name,
        "wall_ms": round((time.perf_counter() - wall_s) * scale, 2),
        "launch_ms": round(launched_s * scale, 2),
        "thread_ms": round((time.thread_time() - thread_s) * scale, 2),
        "peak_mib": round((torch.cuda.max_memory_allocated() - before) / 2**20) if cuda else None,
    }
    if expected is not None:
        theirs, exact = (each[: len(result)] for each in expected)
        told["equal"] = torch.equal(result, theirs)
        told["off_vllm"], told["off_fp32"] = (
            float((result.float() - each.float()).norm() / each.float().norm()) for each in (theirs, exact)
        )
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
