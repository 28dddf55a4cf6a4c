"""How vLLM lays out the KV cache of a Gemma 4, and how many blocks a request takes.

A Gemma 4 mixes layers that attend to everything with layers that see a window, and the two have heads of different
size. vLLM 0.20.2 (v1/core/kv_cache_utils.py, v1/kv_cache_interface.py) makes all pages the same number of bytes by
giving the smaller layers more tokens to a page, splits the layers of each kind into groups of equal size (the rarer
kind sets it), and lets every group draw blocks from one pool. Layers that share an earlier layer's cache own none.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from servekit.preflight.checkpoint.text_config import TextConfig

_NEARLY_EQUAL: Final = 1.5


class LayoutError(ValueError):
    """vLLM cannot lay out a cache for these layers."""


@dataclass(frozen=True)
class KvGroup:
    """`layers` layers with one block table of blocks of `block_tokens` tokens; `window` 0 keeps all tokens."""

    layers: int
    block_tokens: int
    window: int

    def blocks_at_most(self, tokens: int, max_num_batched_tokens: int) -> int:
        """Blocks vLLM accounts for a request of so many tokens.

        A window's layer holds the window and the chunk just scheduled, and one block more since the window may begin
        inside of one (SlidingWindowSpec.max_admission_blocks_per_request).
        """
        if not self.window:
            return _ceil_div(tokens, self.block_tokens)
        return _ceil_div(min(self.window - 1 + max_num_batched_tokens, tokens), self.block_tokens) + 1


@dataclass(frozen=True)
class KvLayout:
    """The pool: `page_bytes` is one layer's share of a block, `group_layers` how many of them a block has."""

    groups: tuple[KvGroup, ...]
    page_bytes: int
    group_layers: int

    @property
    def block_bytes(self) -> int:
        """Bytes of one block of the pool."""
        return self.page_bytes * self.group_layers

    def blocks_at_most(self, tokens: int, max_num_batched_tokens: int) -> int:
        """Blocks vLLM accounts for a request of `tokens`: what its figures of capacity are made of."""
        return sum(group.blocks_at_most(tokens, max_num_batched_tokens) for group in self.groups)

    def longest_request(self, blocks: int, longest: int, max_num_batched_tokens: int) -> int:
        """Find the longest request, in tokens up to `longest`, the pool can hold; 0 if none."""
        return bisect_right(
            range(1, longest + 1), blocks, key=lambda tokens: self.blocks_at_most(tokens, max_num_batched_tokens)
        )


def kv_layout(text: TextConfig, *, block_tokens: int, element_bytes: int, hybrid: bool = True) -> KvLayout:
    """Lay out the cache of `text` in blocks of `block_tokens` tokens with elements of `element_bytes`.

    `hybrid` False is `disable-hybrid-kv-cache-manager`: every layer then keeps all tokens. Raises LayoutError where
    vLLM rejects the layers.
    """
    kinds = Counter(
        (
            0 if text.is_full(layer) else text.sliding_window,
            2 * block_tokens * text.kv_heads(layer) * text.head_size(layer) * element_bytes,
        )
        for layer in range(text.first_shared_layer)
    )
    windows = {window for window, _ in kinds}
    if not hybrid or len(windows) == 1:
        # layers that hold the same tokens form one group, a block has a page of each
        every = sum(page * layers for (_, page), layers in kinds.items())
        return KvLayout((KvGroup(kinds.total(), block_tokens, windows.pop() if hybrid else 0),), every, 1)
    return _hybrid_layout(kinds, block_tokens)


def _hybrid_layout(kinds: Mapping[tuple[int, int], int], block_tokens: int) -> KvLayout:
    """Lay out the kinds of layers, each its window and the bytes of its page, with how many layers there are of it."""
    largest = max(page for _, page in kinds)
    if any(largest % page for _, page in kinds):
        sizes = " and ".join(f"{page:,}" for _, page in kinds)
        raise LayoutError(f"the pages of {sizes} bytes are not multiples of each other")
    fewest, most = min(kinds.values()), max(kinds.values())
    group_layers = most if most < fewest * _NEARLY_EQUAL else fewest
    groups: list[KvGroup] = []
    for (window, page), layers in kinds.items():
        count = _ceil_div(layers, group_layers)
        tokens = block_tokens * (largest // page)
        groups.extend(KvGroup(len(range(index, layers, count)), tokens, window) for index in range(count))
    return KvLayout(tuple(groups), largest, group_layers)


def _ceil_div(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)
