"""fuzz.py SECONDS SEED: random methods with random arguments, right and wrong, and lists, clocks and integers that do things
while they are read. Whatever happens is an exception of Python's, never the end of the process, and managers stay sound.
FIRN_FUZZ_SECONDS in the environment is stronger than SECONDS. Runs under a sanitizer with the module built for it:
LD_PRELOAD=libasan.so PYTHONMALLOC=malloc."""

import faulthandler
import gc
import inspect
import os
import random
import sys
import threading
import time

import numpy

import firn_kv as firn

faulthandler.enable()
seconds = float(os.environ.pop("FIRN_FUZZ_SECONDS", sys.argv[1] if len(sys.argv) > 1 else "5"))
seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
rng = random.Random(seed)
KV_HEADS, DIM, HEADS = 2, 16, 4
calls = refused = 0


class Evil:
    """An integer, or a float, that does something while it is looked at."""

    def __init__(self, world, items=None):
        self.world, self.items, self.value = world, items, rng.randrange(100)

    def act(self):
        what = rng.randrange(6)
        if what == 0 and self.items is not None:
            self.items.clear()
        elif what == 1 and self.items is not None:
            self.items.extend([1] * 1000)
        elif what == 2:
            gc.collect(0)
        elif what == 3 and rng.randrange(8) == 0:
            rng.choice(self.world.managers).close()
        elif what == 4:
            raise rng.choice([ValueError, KeyError, OverflowError, MemoryError])("evil")

    def __index__(self):
        self.act()
        return self.value

    def __float__(self):
        self.act()
        return float(self.value)

    def __len__(self):
        self.act()
        return self.value

    def __iter__(self):
        self.act()
        return iter([1, 2, self])


class World:
    def __init__(self):
        self.managers = []
        self.sequences = [0, 1, 2]
        self.keys = [b"k" * 32]
        self.fences = []
        self.others = []
        for _ in range(3):
            self.managers.append(self.make())

    def clock(self):
        if rng.randrange(2000) == 0:
            return rng.choice([None, "x", 1.5, 1 << 80, -(1 << 63), (1 << 63) - 1])
        return time.monotonic_ns()

    def make(self):
        groups = [firn.Group(2, KV_HEADS, DIM, query_heads=HEADS, dtype=rng.choice(["f16", "bf16", "f32"]))]
        if rng.randrange(3) == 0:
            groups.append(firn.Group(2, KV_HEADS, DIM, query_heads=HEADS, kind="sliding_window", window=32))
        model = firn.Model(groups, weights=b"w" * 32)
        settings = rng.choice([
            {"device": "none", "pool": {"slots": 40}, "events": {"capacity": 64}},
            {"device": "cpu", "threads": 1, "pool": {"budget": 768 << 10, "max_step_tokens": 64}},
            {"device": "cpu", "threads": 1, "pool": {"slots": 60, "max_step_tokens": 64}, "host": {"budget": "2MiB"},
             "protect": {"recent": 32}, "mover": {"worker": bool(rng.randrange(2))}, "events": {"capacity": 64}},
        ])
        return firn.Manager(model, clock=self.clock if rng.randrange(2) else None, **settings)

    # --- arguments ---

    def number(self):
        return rng.choice([0, 1, 2, 3, 15, 16, 17, 64, -1, 255, 256, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1,
                           (1 << 64) - 1, 1 << 64, -(1 << 63), 1.5, True, None, "7", numpy.int64(3), numpy.float32(2), Evil(self),
                           rng.randrange(100)])

    def sequence(self):
        return rng.choice(self.sequences) if rng.randrange(12) else self.number()

    def tokens(self):
        n = rng.randrange(1, 120)
        base = rng.randrange(3) * 1000
        tokens = list(range(base, base + n))
        kind = rng.randrange(16)
        if kind == 0:
            tokens[rng.randrange(n)] = Evil(self, tokens)
        elif kind == 1:
            return numpy.array(tokens, rng.choice([numpy.int32, numpy.int64, numpy.float32, numpy.uint8, object]))
        elif kind == 2:
            return numpy.array(tokens * 2, numpy.int32)[::2]
        elif kind == 3:
            tokens[rng.randrange(n)] = self.number()
        elif kind == 4:
            return rng.choice([None, 5, "abc", b"abc", {1, 2}, {1: 2}, iter(tokens), range(n), tuple(tokens), [], [[1]], Evil(self)])
        elif kind < 12:
            return numpy.array(tokens, numpy.int32)
        return tokens

    def array(self, heads):
        n = rng.randrange(0, 24)
        shape = rng.choice([(n, heads, DIM)] * 12 + [(heads, n, DIM), (n * heads, DIM), (n, heads * DIM), (n,), (), (n, heads, DIM, 1), (n, heads, DIM + 1)])
        dtype = rng.choice([numpy.float32] * 8 + [numpy.float16, numpy.uint16, numpy.float64, numpy.int32, bool, numpy.complex64, object])
        array = numpy.zeros(shape, dtype)
        kind = rng.randrange(20)
        if kind == 0:
            array = array[::-1]
        elif kind == 1:
            array = array.T
        elif kind == 2:
            array.flags.writeable = False
        elif kind == 3:
            return rng.choice([None, 5, "k", [[1.0]], memoryview(b"1234"), bytearray(64), Evil(self)])
        elif kind == 4:
            array = numpy.broadcast_to(numpy.float32(1), shape)
        return array

    def rows(self):
        rows = []
        at = 0
        for _ in range(rng.randrange(0, 3)):
            count = rng.randrange(0, 12)
            try:
                rows.append(firn.StepRows(self.sequence(), count if rng.randrange(20) else self.number(), rng.choice([0, rng.randrange(60)]),
                                          at if rng.randrange(20) else self.number()))
            except (TypeError, ValueError, KeyError, MemoryError, OverflowError):
                pass
            at += count
        return rows if rng.randrange(40) else rng.choice([None, 5, [None], [1], "rows", Evil(self)])

    def key_list(self):
        keys = [rng.choice(self.keys) if rng.randrange(6) else os.urandom(rng.choice([32, 32, 31, 0])) for _ in range(rng.randrange(5))]
        if rng.randrange(20) == 0:
            keys.append(rng.choice([None, 5, "k", Evil(self, keys)]))
        return keys if rng.randrange(30) else self.number()

    def pairs(self, width):
        items = []
        for _ in range(rng.randrange(4)):
            item = [self.sequence() if rng.randrange(2) else rng.randrange(60) for _ in range(width)]
            if rng.randrange(10) == 0:
                item[rng.randrange(width)] = Evil(self, items)
            if rng.randrange(20) == 0:
                item = item[:-1]
            items.append(rng.choice([tuple, list])(item))
        return items if rng.randrange(30) else self.number()

    def media(self):
        items = [(rng.randrange(100), rng.randrange(20), os.urandom(rng.randrange(70))) for _ in range(rng.randrange(3))]
        if items and rng.randrange(5) == 0:
            items[0] = rng.choice([None, (1,), (Evil(self, items), 2, b"x"), (1, 2, "x"), [1, 2, b"x"]])
        return items

    def name(self):
        return rng.choice(["", "a", b"a", "\ud800", b"\xff", 5, None, "x" * 1000])

    def options(self):
        options = {}
        for word, make in (("name_space", self.name), ("read_cache", lambda: rng.choice([True, False, 2, None])),
                           ("min_fidelity", lambda: rng.choice(["exact", "lossy", "derived", "what", 3])), ("shared_scope", self.name),
                           ("shared_tokens", self.number), ("share", lambda: rng.choice([True, False])),
                           ("admission", lambda: rng.choice(["always", "must_fit", "reserve", "perhaps"])), ("expected_tokens", self.number),
                           ("adapter", self.name), ("media", self.media), ("max_reuse_tokens", self.number), ("drop_last_block", lambda: rng.choice([True, False]))):
            if rng.randrange(12) == 0:
                options[word] = make()
        return options

    def fence(self):
        return rng.choice(self.fences) if self.fences and rng.randrange(3) else rng.choice([None, 5, "fence"])

    def by_name(self, word):
        """What a parameter of this name usually wants; one in many times anything."""
        if rng.randrange(60) == 0:
            return rng.choice([self.number, self.tokens, self.name, self.rows, self.key_list, lambda: object(), lambda: self])()
        return {
            "seq": self.sequence, "tokens": self.tokens, "rows": self.rows, "keys": self.key_list, "fence": self.fence, "name_space": self.name,
            "k": lambda: self.array(KV_HEADS), "v": lambda: self.array(KV_HEADS), "out_k": lambda: self.array(KV_HEADS),
            "out_v": lambda: self.array(KV_HEADS), "q": lambda: self.array(HEADS), "out": lambda: self.array(HEADS), "mass": lambda: None,
            "requests": lambda: self.pairs(2), "ranges": lambda: self.pairs(4), "layer": lambda: rng.choice([0, 1, 2, 3, self.number()]),
            "slot": lambda: rng.choice([rng.randrange(70), self.number()]), "owner": self.name, "query_heads": lambda: HEADS,
            "scale": lambda: rng.choice([0.25, float("nan"), 1]), "timeout_ns": lambda: rng.choice([0, 1000, 100000, -1, -(1 << 63), 1 << 70, None]),
            "ttl_ns": lambda: rng.choice([0, 1, 1 << 40, (1 << 63) - 1, -1, self.number()]),
            "new_tokens": lambda: rng.choice([rng.randrange(40), self.number()]), "budget_bytes": lambda: rng.choice([rng.randrange(4 << 20), -1, None]),
        }.get(word, self.number)()


SIGNATURES = {
    "allocate": ("seq", "new_tokens", "lookahead"), "append": ("layer", "rows", "k", "v"), "attend": ("layer", "rows", "q", "out"),
    "gather": ("seq", "layer", "out_k", "out_v", "first"), "commit": ("seq", "tokens"), "fork": ("seq",), "rewind": ("seq", "n"),
    "free": ("seq", "fence"), "preempt": ("seq", "fence"), "resume": ("seq",), "token_count": ("seq",), "usable_tokens": ("seq",),
    "block_table": ("seq", "page_set"), "block_keys": ("seq",), "compute_keys": ("tokens", "name_space"), "block_states": ("seq",),
    "prefetch": ("seq",), "done": ("ticket",), "cancel": ("ticket",), "pump": ("max_jobs",), "wait": ("ticket", "timeout_ns"),
    "wait_idle": ("timeout_ns",), "wait_room": ("seq", "new_tokens", "timeout_ns"), "wait_fence": ("fence", "timeout_ns"),
    "empty_pool": ("poison",), "resize_pool": ("budget_bytes",), "reset": (), "set_retention": ("seq", "ranges"), "pin": ("keys", "ttl_ns"),
    "unpin": ("keys",), "acquire_lease": ("owner", "keys", "ttl_ns"), "renew_lease": ("lease", "ttl_ns"), "release_lease": ("lease",),
    "leases": (), "set_family": ("keys",), "set_quota": ("name_space",), "usage": ("name_space",), "namespace_tag": ("name_space",),
    "take_events": ("since", "max", "name_space"), "event_snapshot": ("name_space",), "stats": (), "ledger": (), "dump": (), "config": (),
    "page_sets": (), "hash_slot": ("slot",), "slot_info": ("slot",), "slot_view": ("slot", "layer"), "reuse_order": (), "verify": (),
    "plan_step": ("requests",), "begin": ("tokens",), "match_prefix": ("tokens",), "explain": ("tokens",), "__repr__": (),
}
OFTEN = ["begin", "begin", "allocate", "allocate", "commit", "commit", "free", "free", "append", "attend", "gather"]


def one(world):
    global calls, refused
    calls += 1
    manager = rng.choice(world.managers)
    try:
        name = rng.choice(OFTEN) if rng.randrange(2) else rng.choice(list(SIGNATURES))
        arguments = [world.by_name(word) for word in SIGNATURES[name]]
        if rng.randrange(100) == 0 and arguments:
            arguments.pop()
        options = world.options() if name in ("begin", "match_prefix", "explain") else {}
        if name == "attend":
            options = {"query_heads": world.by_name("query_heads"), "scale": world.by_name("scale")}
            if rng.randrange(3) == 0:
                options["mass"] = numpy.zeros((rng.randrange(30), rng.randrange(8)), rng.choice([numpy.float32, numpy.float32, numpy.float64]))
        if name == "set_quota":
            options = {word: rng.choice([0, rng.randrange(1 << 20), world.number()]) for word in ("device_floor", "device_ceiling", "host_ceiling") if rng.randrange(3) == 0}
        result = getattr(manager, name)(*arguments, **options)
        repr(result)
        if name == "begin":
            world.sequences.append(result.seq)
            if rng.randrange(4) and not isinstance(arguments[0], (Evil, type(iter([])))):
                rest = len(arguments[0]) - result.match.tokens
                manager.allocate(result.seq, rest)
                manager.commit(result.seq, arguments[0][result.match.tokens:])
        elif name in ("append", "attend"):
            world.fences.append(result)
        elif name == "fork":
            world.sequences.append(result)
        elif name in ("block_keys", "compute_keys"):
            world.keys.extend(result)
        elif name == "verify":
            assert result == [], result
    except AssertionError:
        raise
    except Exception:  # noqa: BLE001: whatever it is, the process lives
        refused += 1
    del world.keys[:-100], world.fences[:-50]
    if len(world.sequences) > 40:
        for seq in world.sequences[:20]:
            for each in world.managers:
                try:
                    each.free(seq)
                except Exception:  # noqa: BLE001
                    pass
        del world.sequences[:20]
    what = rng.randrange(3000)
    if what < 10:
        index = rng.randrange(len(world.managers))
        try:
            if not world.managers[index].closed and what < 5:
                assert world.managers[index].verify() == []
                world.managers[index].close()
            world.managers[index] = world.make()
        except AssertionError:
            raise
        except Exception:  # noqa: BLE001
            refused += 1
    elif what < 20:
        others(world)


def others(world):
    """Everything beside the manager."""
    makes = [
        lambda: firn.KeyChain(world.name(), world.name()), lambda: firn.KeyChain(b"i" * 32, world.name()).keys(world.tokens(), media=world.media()),
        lambda: firn.KeyChain(b"i" * 32).next(rng.choice([None, b"k" * 32, b"k", 5]), world.tokens(), os.urandom(rng.choice([0, 4096, 4097]))),
        lambda: firn.hash_bytes(rng.choice([b"x", "x", None, bytearray(3)])), lambda: firn.block_extra(world.number(), adapter=world.name(), media=world.media()),
        lambda: firn.Group(world.number(), world.number(), world.number(), window=world.number(), dtype=rng.choice(["f16", "x", 5])),
        lambda: firn.Model(rng.choice([[], None, [5], [firn.Group(2, 2, 16)]]), inverse_frequencies=rng.choice([[], [1.0, Evil(world)], "x", [None]]),
                           rotation=rng.choice(["none", "halves", "x"]), rotation_dims=world.number(), weights=rng.choice([b"", b"w" * 32, b"w"])),
        lambda: firn.Manager(firn.Model([firn.Group(2, 2, 16)]), clock=rng.choice([5, "x", lambda: 1, lambda: 1 // 0, print]), device="none", pool={"slots": rng.choice([0, 1, 40, -1, None, 1.5])}),
        lambda: firn.Manager(rng.choice([None, 5, firn.Model([firn.Group(2, 2, 16)])]), rng.choice(["/nowhere", b"\xff", 5, "a\0b"]), device="none"),
        lambda: firn.Manager.__new__(firn.Manager).stats(), lambda: firn.Manager.__init__(rng.choice(world.managers), firn.Model([firn.Group(2, 2, 16)]), device="none", pool={"slots": 40}),
        lambda: firn.Fence().__repr__(), lambda: firn.tokens_on_all_ranks([]), lambda: rng.choice(world.managers).pool.info(world.number()),
        lambda: rng.choice(world.managers).pool.cached_count, lambda: gc.collect(),
    ]
    try:
        repr(rng.choice(makes)())
    except Exception:  # noqa: BLE001
        pass


def main():
    print(f"fuzz: seed {seed}, {seconds:.0f} s", flush=True)
    assert set(SIGNATURES) - {"__repr__"} >= {n for n, f in inspect.getmembers(firn._firn.Manager, callable) if not n.startswith("_")} - {"close"}
    world = World()
    end = time.monotonic() + seconds
    stop = []

    def beside():  # another thread looks at everything all the time
        while not stop:
            manager = world.managers[0]
            try:
                manager.stats(), manager.dump(), manager.verify()
            except Exception:  # noqa: BLE001
                pass
            time.sleep(0.001)

    thread = threading.Thread(target=beside)
    thread.start()
    try:
        while time.monotonic() < end:
            one(world)
    finally:
        stop.append(1)
        thread.join()
    for manager in world.managers:
        if not manager.closed:
            while True:
                try:
                    assert manager.verify() == []
                    break
                except (TypeError, OverflowError):  # its clock
                    pass
            manager.close()
    print(f"fuzz: seed {seed}, {calls} calls, {refused} refused", flush=True)


main()
