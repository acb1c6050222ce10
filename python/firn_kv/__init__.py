"""firn-kv: the KV cache manager, in the words of its C++ interface (include/firn/manager.h is the manual).

A step of an engine::

    begun = manager.begin(tokens)                 # what of this prompt is already here?
    manager.allocate(begun.seq, n)                # slots for the rest, all or nothing
    for layer in range(layers):
        manager.append(layer, rows, k, v)         # float32 arrays are not copied; float16 and bfloat16 may come too
        manager.attend(layer, rows, q, out, query_heads=8, scale=0.125)
    manager.commit(begun.seq, tokens)             # now others may share its full blocks
    manager.free(begun.seq)

Failures are exceptions: InvalidArgument (a ValueError), NoSpace, Unavailable, Corrupt, IoError; all are Error. Any thread
may call; every call lets go of the interpreter's lock while it works.
"""

from __future__ import annotations

import atexit
import functools
import json
import operator
import os
import weakref
from typing import Any, Callable, FrozenSet, Iterable, Iterator, Mapping, Optional, Tuple, Union

from . import _firn
from ._firn import (  # noqa: F401
    BLOCK_TOKENS,
    NO_SLOT,
    NULL_SLOT,
    Begun,
    BlockVerdict,
    BlockView,
    Corrupt,
    CopyOrder,
    Error,
    Event,
    EventBatch,
    EventBlock,
    EventSnapshot,
    Explanation,
    Fence,
    Group,
    InvalidArgument,
    IoError,
    KeyChain,
    LeaseInfo,
    Model,
    NamespaceUsage,
    NoSpace,
    PinReport,
    PoolResize,
    PrefixMatch,
    SlotInfo,
    StepPlan,
    StepRows,
    Unavailable,
    block_extra,
    hash_bytes,
    __version__,
)


@functools.lru_cache(maxsize=None)
def _sizes() -> FrozenSet[str]:
    """The settings that are sizes, by the schema that the library makes of its table."""
    found = []

    def walk(properties: Mapping[str, Any], section: str) -> None:
        for name, entry in properties.items():
            if "properties" in entry:
                walk(entry["properties"], f"{section}{name}.")
            elif any("KiB" in choice.get("pattern", "") for choice in entry.get("anyOf", [entry])):
                found.append(section + name)

    walk(json.loads(_firn.config_schema())["properties"], "")
    return frozenset(found)


def _flat(settings: Mapping[str, Any], section: str = "") -> Iterator[Tuple[str, str]]:
    for key, value in settings.items():
        name = f"{section}.{key}" if section else str(key)
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        elif isinstance(value, bool):
            yield name, "true" if value else "false"
        elif isinstance(value, (str, os.PathLike)):
            yield name, os.fspath(value)
        else:
            try:
                number = operator.index(value)
            except TypeError:
                raise TypeError(f"{name}: str, int or bool, not {type(value).__name__}") from None
            yield name, f"{number}B" if name in _sizes() else str(number)


_open: "weakref.WeakSet[Manager]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for manager in list(_open):
        manager.close()


class Manager(_firn.Manager):
    """The KV cache of one model.

    config: a YAML file (docs/config.md), read with this process's FIRN_* variables; None: the settings alone.
    settings: stronger than the file: Manager(model, device="none", pool={"budget": "16MiB"}). Sizes may be ints of bytes.
    clock: nanoseconds, for runs that can be replayed. It is read once in each call, by the caller's thread, and what it
        raises the call raises.

    close(), the end of a `with` block and the end of the interpreter give everything back; every later call raises
    InvalidArgument. Calls that are under way in other threads end first.
    """

    def __init__(
        self,
        model: Model,
        config: Optional[Union[str, "os.PathLike[str]"]] = None,
        *,
        clock: Optional[Callable[[], int]] = None,
        **settings: Any,
    ) -> None:
        path = None if config is None else os.fsdecode(config)
        if path is not None and "\0" in path:
            raise ValueError("config: a path without zero bytes")
        super().__init__(model, path, list(_flat(settings)), clock)
        _open.add(self)

    def __enter__(self) -> "Manager":
        if self.closed:
            raise InvalidArgument("this manager is closed")
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<firn_kv.Manager, closed>"
        stats = self.stats()
        return f"<firn_kv.Manager, {stats['slots_total']} slots, {stats['slots_free']} free, {stats['sequences']} sequences>"

    @property
    def pool(self) -> "BlockPool":
        return BlockPool(self)


def tokens_on_all_ranks(matches: Iterable[PrefixMatch]) -> int:
    """Tensor parallel: as many tokens as every rank can reuse, for begin(max_reuse_tokens=...) on each of them."""
    return min((match.tokens for match in matches), default=0)


class BlockPool:
    """What is in the slots of a manager's pool. Slot 0 is the null block; 1 to len(pool) - 1 are handed out in order."""

    null_block = NULL_SLOT

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def __repr__(self) -> str:
        return f"<firn_kv.BlockPool of {self._manager!r}>"

    def __len__(self) -> int:
        return int(self._manager.stats()["slots_total"]) + 1

    def free_order(self) -> "list[int]":
        """The blocks that allocate() would take, the next one first: empty ones, then cached ones."""
        return self._manager.reuse_order().tolist()

    @property
    def free_count(self) -> int:
        return len(self._manager.reuse_order())

    @property
    def cached_count(self) -> int:
        """Blocks that can be found by their key."""
        return sum(self.key(block) is not None for block in range(1, len(self)))

    def info(self, block: int) -> SlotInfo:
        return self._manager.slot_info(block)

    def references(self, block: int) -> int:
        return self.info(block).references

    def key(self, block: int) -> Optional[bytes]:
        """The key of the block in this slot; None: it is empty, or not full yet."""
        return self.info(block).key
