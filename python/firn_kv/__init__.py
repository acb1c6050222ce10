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

An engine that owns its KV memory takes the cold side alone: ColdCache.
"""

from __future__ import annotations

import atexit
import functools
import json
import operator
import os
import weakref
from typing import Any, Callable, FrozenSet, Iterable, Iterator, List, Mapping, Optional, Tuple, Union

from . import _firn
from ._firn import (  # noqa: F401
    BLOCK_TOKENS,
    NO_SLOT,
    NULL_SLOT,
    Begun,
    BlockVerdict,
    BlockView,
    ColdDone,
    ColdFound,
    ColdResult,
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


_open: "weakref.WeakSet[Union[Manager, ColdCache]]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for one in list(_open):
        one.close()


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


class ColdLookup(List[ColdFound]):
    """What ColdCache.lookup() found: one answer a key, in their order."""

    ticket: int = 0
    """Of follow=True: not 0: some answers are pending; it ends when all are decided, with results for all of the keys."""

    @property
    def hits(self) -> int:
        """How many of them are hits."""
        return sum(found.hit for found in self)

    @property
    def prefix(self) -> int:
        """How many of the first are hits without a gap."""
        return next((i for i, found in enumerate(self) if not found.hit), len(self))


class ColdCache(_firn.ColdCache):
    """The cold side alone, for engines that own their KV memory (docs/cold_cache.md; include/firn/cold_cache.h).

    You name blocks and say in which arrays they are; the cache encodes them into frames, keeps the frames within one
    budget, and brings the bytes back wherever you want them, or says why it cannot. store(), load() and their like return
    a ticket at once; wait() or poll() tells how it ended, name by name, and fileno() becomes readable when one has::

        with ColdCache(model, 1 << 30) as cache:
            keys = cache.keys(names, "tenant")                    # or firn's keys: KeyChain
            cache.wait(cache.store(keys, kv))                     # kv: [layers][2][blocks][16][kv_heads][head_dim]
            if cache.lookup(keys).prefix == len(keys):
                done = cache.wait(cache.load(keys, kv))

    model: geometry (groups) and identity; caches of different models never serve each other.
    budget_bytes: of host memory, everything: frames, tables, queues, scratch. Hard.
    codec: raw or lossless (both exact), or, if you accept that the bytes change, q8, q4, q8/q4, kvtc@RATE with
        artefact: the file that `firn calibrate` wrote (allow_unmeasured: one without a measured report).
    names: "independent", or "chained" for keys of a KeyChain.
    eviction: a policy (docs/policies.md). admit_second_use: what is offered for the first time is only remembered.
    placement, huge_pages: of the host tier's memory. max_blocks: names at once; 0: from the budget.
    queue_blocks, queue_tickets: names, and tickets, that nobody has collected; beyond them calls raise Unavailable.
    workers: threads of its own; False: pump() and wait() do the work in the caller's thread.
    threads: that codecs share; 1: none beside the cache's own; 0: one a processor.
    clock: nanoseconds, for deadlines and policies; read once in each call, by the caller's thread.

    Until a ticket has been collected, the cache holds the arrays that it reads or writes; leave their bytes alone until
    then. Any thread may call. close(), the end of a `with` block and the end of the interpreter cancel what is queued and
    wait for what runs; every later call raises InvalidArgument. In the child of a fork() every call raises Unavailable.
    """

    def __init__(self, model: Model, budget_bytes: int, **options: Any) -> None:
        super().__init__(model, budget_bytes, **options)
        _open.add(self)

    def lookup(
        self,
        keys: Iterable[Union[bytes, str]],
        kind: str = "block",
        *,
        least: str = "derived",
        name_space: Optional[Union[str, bytes]] = None,
        group: int = 0,
        first_position: int = 0,
        deadline_ns: int = 0,
        follow: bool = False,
    ) -> ColdLookup:
        """One answer a key, at once. kind: "block" or "state". least: what is less exact is a miss ("exact", "lossy",
        "derived"). name_space: not None: `keys` are your own names under it. follow: answers that are pending (a
        store under way brings the name) make a ticket, to be collected like any other; deadline_ns: of it, from now."""
        found, ticket = self._lookup(keys, kind, least, name_space, group, first_position, deadline_ns, follow)
        answers = ColdLookup(found)
        answers.ticket = ticket
        return answers

    def __enter__(self) -> "ColdCache":
        if self.closed:
            raise InvalidArgument("this cache is closed")
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<firn_kv.ColdCache, closed>"
        stats = self.stats()
        return f"<firn_kv.ColdCache, {stats['blocks']} blocks, {stats['states']} states, {stats['tickets']} tickets>"


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
