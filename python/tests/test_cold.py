"""ColdCache from Python: bytes that come back, arrays that stay, whoever lets go of what and when."""

import asyncio
import contextlib
import gc
import io
import json
import pathlib
import re
import select
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import ml_dtypes
import numpy
import pytest

import firn_kv as firn

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAYERS, HEADS, DIM = 2, 2, 16


def model(dtype="f16", layers=LAYERS, heads=HEADS, dim=DIM, **more):
    return firn.Model([firn.Group(layers, heads, dim, dtype=dtype, **more)], weights=firn.hash_bytes(b"w"))


def cold(budget_bytes=16 << 20, dtype="f16", of=None, **more):
    return firn.ColdCache(of or model(dtype), budget_bytes, **{"huge_pages": False, "threads": 1, "queue_blocks": 1024, **more})


def random_kv(blocks, dtype=numpy.float16, seed=1, layers=LAYERS, heads=HEADS, dim=DIM):
    values = numpy.random.default_rng(seed).standard_normal((layers, 2, blocks, 16, heads, dim)).astype(numpy.float32)
    return values.astype(dtype)


def same(a, b):
    return numpy.ascontiguousarray(a).view(numpy.uint8).tobytes() == numpy.ascontiguousarray(b).view(numpy.uint8).tobytes()


def run(program, **more):
    """A program of its own: how it ends is the test."""
    return subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120, **more)


# --- bytes that come back ---


def test_the_example_stores_forgets_and_loads():
    program = (ROOT / "examples" / "cold.py").read_text()
    assert len(program.splitlines()) <= 30
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program, "cold.py", "exec"), {})
    assert printed.getvalue() == "1000 of 1000 blocks and 125 states came back\n"


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("codec", ["raw", "lossless"])
def test_what_comes_back_is_what_went_in(dtype, codec):
    of = {"f16": numpy.float16, "bf16": ml_dtypes.bfloat16, "f32": numpy.float32}[dtype]
    kv = random_kv(21, of)
    before = kv.copy()
    with cold(dtype=dtype, codec=codec) as cache:
        keys = cache.keys(range_names(21))
        done = cache.wait(cache.store(keys, kv))
        assert done.found == 21 and done.error is None and len(done.results) == 21
        assert cache.stats()["frames"] == 3
        kv.fill(0)
        found = cache.lookup(keys)
        assert found.hits == found.prefix == 21 and found.ticket == 0
        assert (found[0].answer, found[0].miss, found[0].tier, found[0].fidelity) == ("hit", None, "host", "exact")
        assert cache.wait(cache.load(keys, kv)).found == 21
        assert same(kv, before)
        cache.verify()


def range_names(count, first=0):
    return [f"name {i}" for i in range(first, first + count)]


def test_every_layout_and_any_blocks_of_a_pool():
    rng = numpy.random.default_rng(2)
    pool = rng.standard_normal((LAYERS, 40, 16, 2, HEADS, DIM)).astype(numpy.float16)  # K and V by turns in each token
    interleaved = [(layer[:, :, 0], layer[:, :, 1]) for layer in pool]
    by_head = rng.standard_normal((LAYERS, 2, 12, HEADS, 16, DIM)).astype(numpy.float16)  # [blocks][heads][tokens][dim]
    transposed = [layer.transpose(0, 1, 3, 2, 4) for layer in by_head]
    table = rng.permutation(40)[:12]
    before, before_by_head = pool.copy(), by_head.copy()
    with cold() as cache:
        keys = cache.keys(range_names(12))
        cache.wait(cache.store(keys, interleaved, blocks=table))
        pool[:, table] = 0
        cache.wait(cache.load(keys, interleaved, blocks=table.tolist()))
        assert same(pool, before)
        more = cache.keys(range_names(12, 100))
        cache.wait(cache.store(more, transposed))
        by_head.fill(0)
        cache.wait(cache.load(more, transposed))
        assert same(by_head, before_by_head)
        # Into another layout, in another order, one of them unknown.
        fresh = numpy.zeros((LAYERS, 2, 3, 16, HEADS, DIM), numpy.float16)
        done = cache.wait(cache.load([keys[5], cache.key("nobody's"), keys[2]], fresh))
        assert [result.found for result in done.results] == [True, False, True] and done.error is None
        assert done.results[1].miss == "never_stored"
        for place, block in ((0, table[5]), (2, table[2])):
            assert same(fresh[:, 0, place], before[:, block, :, 0]) and same(fresh[:, 1, place], before[:, block, :, 1])
        assert not fresh[:, :, 1].any()


def test_models_whose_values_differ_or_are_none():
    of = firn.Model([firn.Group(2, 1, 24, 8, kind="latent"), firn.Group(1, 2, 16)])
    k = numpy.random.default_rng(3).standard_normal((2, 9, 16, 1, 24)).astype(numpy.float16)
    v = numpy.random.default_rng(4).standard_normal((2, 9, 16, 1, 8)).astype(numpy.float16)
    keep = k.copy(), v.copy()
    with cold(of=of) as cache:
        keys = cache.keys(range_names(9))
        cache.wait(cache.store(keys, list(zip(k, v))))
        k.fill(0), v.fill(0)
        cache.wait(cache.load(keys, [(k[0], v[0]), [k[1], v[1]]]))
        assert same(k, keep[0]) and same(v, keep[1])
        with pytest.raises(TypeError, match="a pair"):
            cache.store(keys, [k[0], k[1]])
        other = random_kv(9, layers=1)
        assert cache.wait(cache.store(cache.keys(range_names(9, 50)), other, group=1)).found == 9
        with pytest.raises(IndexError, match="group: 2"):
            cache.store(keys, other, group=2)


def test_keys_of_firn_and_names_of_your_own():
    with cold(names="chained") as cache:
        keys = firn.KeyChain(model().identity).keys(range(100))
        assert len(keys) == 6
        kv = random_kv(6)
        assert cache.wait(cache.store(keys, kv)).found == 6
        assert cache.lookup(keys).hits == 6
    with cold() as cache:
        kv = random_kv(3)
        cache.wait(cache.store(["a", b"b", "c" * 256], kv, name_space="tenant"))
        assert cache.lookup(["a", b"b", "c" * 256], name_space=b"tenant").hits == 3
        assert cache.lookup(["a"], name_space="another").hits == 0
        assert cache.lookup(cache.keys(["a"], "tenant")).hits == 1
        assert cache.key("a", "tenant") == cache.keys(["a"], "tenant")[0]
        assert cache.erase(["a"], name_space="tenant") == 1
        for wrong in ("", "x" * 257):
            with pytest.raises(firn.InvalidArgument, match="name"):
                cache.key(wrong)
        with pytest.raises(ValueError, match="32 bytes"):
            cache.lookup([b"short"])
        with pytest.raises(TypeError, match="keys: bytes"):
            cache.lookup(["text"])


class Exports:
    """An array of somebody's own, through one protocol alone."""

    def __init__(self, array, protocol):
        self.array = array
        if protocol == "interface":
            self.__array_interface__ = array.__array_interface__


class ByDlpack:
    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **more):
        return self.array.__dlpack__(**more)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_arrays_by_every_protocol_and_none_by_a_copy():
    kv = random_kv(4)
    before = kv.copy()
    raw = bytearray(kv[0].tobytes())
    with cold() as cache:
        keys = cache.keys(range_names(4))
        cache.wait(cache.store(keys, [Exports(kv[0], "interface"), ByDlpack(kv[1])]))
        kv.fill(0)
        shaped = memoryview(raw).cast("B").cast("H", shape=(2, 4, 16, HEADS, DIM))  # the bits of f16
        raw[:] = bytes(len(raw))
        cache.wait(cache.load(keys, [shaped, ByDlpack(kv[1])]))
        assert bytes(raw) == before[0].tobytes() and same(kv[1], before[1])
        with pytest.raises(BufferError):  # held no longer than its tickets
            ticket = cache.load(keys, [shaped, kv[1]])
            raw.extend(b"x")
        cache.wait(ticket)
        shaped.release()
        gc.collect()
        raw.extend(b"x")
        cache.wait(cache.load(keys, [Exports(kv[0], "interface"), kv[1]]))
        assert same(kv, before)


def test_what_is_refused_names_the_argument_and_changes_nothing():
    kv = random_kv(4)
    frozen = random_kv(4)
    frozen.flags.writeable = False
    with cold() as cache:
        keys = cache.keys(range_names(4))
        for error, match, layers, more in [
            (TypeError, "layers, 0: .*f16.* not a float of 32", kv.astype(numpy.float32), {}),
            (TypeError, "layers, 0: .*f16.* not bfloat16", kv.astype(ml_dtypes.bfloat16), {}),
            (ValueError, "layers: 1 for a group of 2", kv[:1], {}),
            (ValueError, "layers, 0: its first axis is 3", numpy.zeros((2, 3, 4, 16, HEADS, DIM), numpy.float16), {}),
            (ValueError, r"layers, 0: its shape is \[2\]\[4\]\[15\]", kv[:, :, :, :15], {}),
            (ValueError, "layers, 0: 3 blocks for 4 keys", kv[:, :, :3], {}),
            (TypeError, "layers, 0: the elements", kv[..., ::-1], {}),
            (TypeError, "layers, 0: axis 1 runs backwards", kv[:, :, ::-1], {}),
            (TypeError, "layers, 0: an array of f16, not", ["text", "text"], {}),
            (TypeError, "layers: a sequence", None, {}),
            (ValueError, "layers, 1: a pair", [kv[0], (kv[1, 0], kv[1, 1], kv[1, 1])], {}),
            (ValueError, "layers, 1: k has 4 blocks, and v has 3", [kv[0], (kv[1, 0], kv[1, 1, :3])], {}),
            (IndexError, "blocks: 4 of 4", kv, {"blocks": [0, 1, 2, 4]}),
            (OverflowError, "blocks: 0 to", kv, {"blocks": [0, 1, 2, -1]}),
            (TypeError, "blocks: an integer, not float", kv, {"blocks": [0, 1, 2, 3.5]}),
            (ValueError, "blocks: 3 for 4 keys", kv, {"blocks": [0, 1, 2]}),
            (ValueError, "bound: 2 entries", kv, {"bound": [True, False]}),
            (ValueError, "fidelity: exact", kv, {"fidelity": "good"}),
            (ValueError, "priority: 0 to 254", kv, {"priority": 255}),
            (firn.InvalidArgument, "first_position 7", kv, {"first_position": 7}),
            (firn.InvalidArgument, "deadline_ns -1", kv, {"deadline_ns": -1}),
        ]:
            with pytest.raises(error, match=match):
                cache.store(keys, layers, **more)
        with pytest.raises(TypeError, match="layers, 0: is read-only"):
            cache.load(keys, frozen)
        with pytest.raises(firn.InvalidArgument, match="zero"):
            cache.store([bytes(32)] * 4, kv)
        with pytest.raises(ValueError, match="kind: block or state"):
            cache.pin(keys, "blob")
        with pytest.raises(firn.InvalidArgument, match="ticket 99"):
            cache.wait(99)
        stats = cache.stats()
        assert stats["tickets"] == stats["queued_names"] == stats["frames"] == 0
        assert cache.wait(cache.store(keys, frozen)).found == 4  # reading what is read-only is fine
    for error, match, options in [
        (firn.NoSpace, "budget_bytes", {"budget_bytes": 1000}),
        (firn.InvalidArgument, "codec", {"codec": "zip"}),
        (firn.InvalidArgument, "eviction", {"eviction": "random"}),
        (ValueError, "names: independent or chained", {"names": "some"}),
        (TypeError, "clock: a callable", {"clock": 3}),
        (ValueError, "threads: at most", {"threads": 5000}),
    ]:
        with pytest.raises(error, match=match):
            cold(**options)


def test_states_beside_their_blocks():
    kv = random_kv(4)
    with cold() as cache:
        keys = cache.keys(range_names(4))
        cache.wait(cache.store(keys, kv, bound=[False, True, False, True]))
        assert [found.miss for found in cache.lookup(keys)] == [None, "unbound", None, "unbound"]
        blobs = [bytearray(b"abc" * 1000), numpy.arange(100, dtype=ml_dtypes.bfloat16)]
        done = cache.wait(cache.store_state(keys[1::2], blobs, bound=True))
        assert done.found == 2
        assert cache.lookup(keys).hits == 4
        states = cache.lookup(keys[1::2], "state")
        assert [found.bytes for found in states] == [3000, 200]
        rooms = [bytearray(states[0].bytes), numpy.zeros(100, ml_dtypes.bfloat16)]
        done = cache.wait(cache.load_state(keys[1::2], rooms))
        assert [result.bytes for result in done.results] == [3000, 200]
        assert rooms[0] == blobs[0] and same(rooms[1], blobs[1])
        done = cache.wait(cache.load_state(keys[1:2], [bytearray(10)]))
        assert done.found == 0 and isinstance(done.error, firn.Error)
        with pytest.raises(TypeError, match="rooms, 0: writable"):
            cache.load_state(keys[1:2], [bytes(3000)])
        with pytest.raises(TypeError, match="blobs, 0: is not in C order"):
            cache.store_state(keys[:1], [numpy.zeros((4, 4))[:, ::2]])
        with pytest.raises(TypeError, match="blobs, 0: bytes in C order"):
            cache.store_state(keys[:1], ["text"])
        with pytest.raises(ValueError, match="blobs: 1 for 2 keys"):
            cache.store_state(keys[:2], [b"a"])
        with pytest.raises(firn.NoSpace, match="room for"):
            cache.store_state(keys[:1], [bytes(cache.max_state_bytes + 1)])
        assert cache.erase(keys[1:2], "state") == 1
        assert cache.lookup(keys[1:2])[0].miss == "unbound"


def test_a_look_up_during_a_store_is_pending_and_becomes_a_hit():
    with cold(workers=False) as cache:
        keys, kv = cache.keys(range_names(4)), random_kv(4)
        ticket = cache.store(keys, kv)
        found = cache.lookup(keys)
        assert {one.answer for one in found} == {"pending"} and found.ticket == found.hits == 0
        found = cache.lookup(keys, follow=True)
        assert found.ticket and cache.wait(found.ticket).found == 4
        assert cache.lookup(keys).hits == 4 and cache.wait(ticket).found == 4


@pytest.mark.parametrize("of", [numpy.uint8, numpy.int8, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_elements_of_eight_bits_are_kept_as_they_are(of):
    bits = numpy.random.default_rng(5).integers(0, 256, (LAYERS, 2, 9, 16, HEADS, DIM), numpy.uint8)
    kv, before = bits.view(of), bits.copy()
    for codec in ("raw", "lossless"):
        with cold(dtype="bits8", codec=codec) as cache:
            keys = cache.keys(range_names(9))
            assert cache.wait(cache.store(keys, kv)).found == 9
            bits.fill(0)
            assert cache.wait(cache.load(keys, kv)).found == 9 and same(bits, before)
            with pytest.raises(TypeError, match="bits8"):
                cache.store(keys, random_kv(9))
    with pytest.raises(firn.InvalidArgument, match="8 bits"):
        cold(dtype="bits8", codec="q8")


def test_pins_touches_and_a_budget_that_is_never_exceeded():
    cache = cold(5 << 20, queue_blocks=64, max_blocks=300, codec="raw")
    kept = cache.keys(range_names(8))
    kv = random_kv(8)
    before = kv.copy()
    cache.wait(cache.store(kept, kv))
    assert cache.pin(kept) == 8 and cache.erase(kept) == 0
    for turn in range(1, 60):
        done = cache.wait(cache.store(cache.keys(range_names(8, 8 * turn)), random_kv(8, seed=turn)))
        assert done.error is None
        stats = cache.stats()
        assert stats["peak_bytes"] <= stats["budget_bytes"] == 5 << 20
    assert cache.stats()["evictions.host"] > 0
    kv.fill(0)
    assert cache.wait(cache.load(kept, kv)).found == 8 and same(kv, before)
    assert cache.touch(kept) == 8 and cache.unpin(kept) == 8 and cache.unpin(kept) == 0 and cache.erase(kept) == 8
    assert cache.lookup(kept)[0].miss == "erased"
    cache.close()


# --- waiting ---


def test_a_selector_and_an_event_loop_wait_for_tickets():
    kv = random_kv(16)
    with cold() as cache:
        keys = cache.keys(range_names(16))
        ticket = cache.store(keys, kv)
        assert select.select([cache], [], [], 30)[0] == [cache]
        assert [done.ticket for done in cache.poll()] == [ticket]
        assert select.select([cache], [], [], 0)[0] == []

        async def load():
            loop, waiting = asyncio.get_running_loop(), {}

            def ended():
                for done in cache.poll():
                    waiting.pop(done.ticket).set_result(done)

            loop.add_reader(cache.fileno(), ended)
            for first in range(0, 16, 4):
                ticket = cache.load(keys[first : first + 4], kv[:, :, first : first + 4])
                waiting[ticket] = loop.create_future()
            all_done = await asyncio.wait_for(asyncio.gather(*waiting.values()), 30)
            loop.remove_reader(cache.fileno())
            return sum(done.found for done in all_done)

        kv.fill(0)
        assert asyncio.run(load()) == 16 and kv.any()


def test_without_workers_waiting_does_the_work_and_timeouts_lose_nothing():
    kv = random_kv(4)
    now = [0]
    with cold(workers=False, clock=lambda: now[0]) as cache:
        keys = cache.keys(range_names(4))
        late = cache.store(keys, kv, deadline_ns=5)
        now[0] = 10
        done = cache.wait(late)
        assert done.found == 0 and isinstance(done.error, firn.Unavailable)
        ticket = cache.store(keys, kv)
        assert cache.cancel(ticket) and not cache.cancel(ticket)
        assert isinstance(cache.wait(ticket).results[3].error, firn.Unavailable)
        assert cache.stats()["cancelled"] == cache.stats()["expired"] == 4
        ticket = cache.store(keys, kv)
        while cache.pump():
            pass
        assert [done.found for done in cache.poll()] == [4]
        with pytest.raises(firn.InvalidArgument, match="collected"):
            cache.wait(ticket)
        assert cache.stats()["tickets"] == 0


def test_a_clock_that_raises_is_the_calls_and_nothing_is_taken():
    def clock():
        if broken:
            raise KeyError("clock")
        return 1

    broken = False
    with cold(clock=clock) as cache:
        keys, kv = cache.keys(range_names(4)), random_kv(4)
        broken = True
        for call in (lambda: cache.store(keys, kv), lambda: cache.lookup(keys), lambda: cache.wait(1), cache.stats):
            with pytest.raises(KeyError):
                call()
        broken = False
        assert cache.stats()["tickets"] == 0


def test_waiting_threads_get_each_ticket_once_and_let_others_run():
    kv = random_kv(64)
    ticks = 0
    with cold(queue_blocks=4096) as cache:
        keys = cache.keys(range_names(64))
        results = []

        def work(part):
            for _ in range(20):
                results.append(cache.wait(cache.store(keys[part], kv[:, :, part])).found)
                results.append(cache.wait(cache.load(keys[part], kv[:, :, part])).found)

        threads = [threading.Thread(target=work, args=(slice(i * 16, i * 16 + 16),)) for i in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            ticks += 1
            time.sleep(0.001)
        assert results == [16] * 160 and ticks > 0
        assert cache.stats()["tickets"] == 0


# --- who lets go of what, and when ---


def test_arrays_stay_until_their_ticket_is_collected():
    with cold(workers=False) as cache:
        keys = cache.keys(range_names(4))
        kv = random_kv(4)
        before, gone = kv.copy(), weakref.ref(kv)
        ticket = cache.store(list(keys), [kv[0], kv[1]])
        del kv
        gc.collect()
        assert gone() is not None
        assert cache.wait(ticket).found == 4
        gc.collect()
        assert gone() is None
        out = numpy.zeros_like(before)
        assert cache.wait(cache.load(keys, out)).found == 4 and same(out, before)


def test_lists_that_change_while_they_are_read_and_arrays_that_raise():
    kv = random_kv(4)
    with cold() as cache:
        keys = cache.keys(range_names(4))
        blocks = []

        class Shrinks:
            def __index__(self):
                blocks.clear()
                keys.clear()
                gc.collect()
                return 2

        blocks.extend([Shrinks(), 1, 2, 3])
        given = list(keys)
        assert cache.wait(cache.store(keys, kv, blocks=blocks)).found == 4 and keys == []
        out = numpy.zeros_like(kv)
        cache.wait(cache.load(given, out))
        assert same(out[:, :, 0], kv[:, :, 2])

        class Raises:
            def __dlpack__(self, **_):
                raise ZeroDivisionError

            def __iter__(self):
                raise ZeroDivisionError

            def __index__(self):
                raise ZeroDivisionError

            def __bool__(self):
                raise ZeroDivisionError

        for more in ({"blocks": Raises()}, {"blocks": [Raises()] * 4}, {"bound": [Raises()] * 4}):
            with pytest.raises(ZeroDivisionError):
                cache.store(given, kv, **more)
        with pytest.raises(TypeError):
            cache.store(given, [kv[0], Raises()])

        class Closes:
            def __index__(self):
                cache.close()
                return 0

        with pytest.raises(firn.InvalidArgument, match="closed"):
            cache.wait(cache.store(given, kv, blocks=[Closes(), 1, 2, 3]))
    assert cache.closed


def test_close_ends_what_runs_and_every_later_call_raises():
    kv = random_kv(64)
    cache = cold(64 << 20)
    keys = cache.keys(range_names(64))
    for _ in range(3):
        for first in range(0, 64, 8):
            cache.store(keys[first : first + 8], kv[:, :, first : first + 8])
    gone = weakref.ref(kv)
    del kv
    cache.close()
    gc.collect()
    assert gone() is None and cache.closed and "closed" in repr(cache)
    cache.close()
    for call in (
        lambda: cache.lookup(keys),
        lambda: cache.store(keys, random_kv(64)),
        lambda: cache.poll(),
        lambda: cache.wait(1),
        lambda: cache.fileno(),
        lambda: cache.stats(),
        lambda: cache.pin(keys),
        lambda: cache.__enter__(),
    ):
        with pytest.raises(firn.InvalidArgument, match="closed"):
            call()


def test_close_while_another_thread_waits():
    cache = cold(workers=True, clock=lambda: 0)
    errors = []

    def wait():
        while True:
            try:
                cache.wait(cache.store([b"\1" * 32], random_kv(1)))
            except firn.Error as error:
                errors.append(str(error))
                return

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    cache.close()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert len(errors) == 3 and all("closed" in error for error in errors), errors


def test_a_child_of_fork_is_told_so_and_ends():
    ended = run(
        """
        import os, numpy, firn_kv as firn
        cache = firn.ColdCache(firn.Model([firn.Group(1, 1, 16)]), 16 << 20)
        kv = numpy.ones((1, 2, 4, 16, 1, 16), numpy.float16)
        keys = cache.keys(["a", "b", "c", "d"])
        ticket = cache.store(keys, kv)
        child = os.fork()
        if child == 0:
            told = 0
            for call in (lambda: cache.lookup(keys), lambda: cache.wait(ticket), lambda: cache.store(keys, kv),
                         cache.poll, cache.stats, cache.fileno):
                try:
                    call()
                except firn.Unavailable as error:
                    told += "fork" in str(error)
            cache.close()
            raise SystemExit(0 if told == 6 else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), cache.wait(ticket).found)
        """
    )
    assert ended.stdout == "0 4\n" and ended.returncode == 0, ended.stderr


def test_the_end_of_the_interpreter_waits_for_what_runs():
    # The last: a thread that is in the clock, in Python, while the interpreter goes away.
    clocked = "cache = firn.ColdCache(firn.Model([firn.Group(1, 1, 16)]), 16 << 20, clock=lambda: sum(range(1000)))"
    forever = "threading.Thread(target=lambda: [cache.stats() for i in range(10**9)], daemon=True).start()"
    for last in ("", "cache.close()", "del cache", "os._exit(0)", "import sys; sys.exit(3)") + (f"{clocked}; {forever}",) * 3:
        ended = run(
            f"""
            import os, threading, numpy, firn_kv as firn
            cache = firn.ColdCache(firn.Model([firn.Group(4, 2, 64)]), 64 << 20)
            kv = numpy.ones((4, 2, 64, 16, 2, 64), numpy.float16)
            tickets = [cache.store(cache.keys([str(i * 64 + j) for j in range(64)]), kv, first_position=i * 1024) for i in range(20)]
            threading.Thread(target=lambda: cache.wait(tickets[-1]), daemon=True).start()
            {last}
            """
        )
        assert ended.returncode == (3 if "exit(3)" in last else 0), (last, ended.returncode, ended.stderr)


def test_caches_are_collected_and_stats_are_json():
    class Engine:
        def __init__(self):
            self.cache = cold(clock=self.now)

        def now(self):
            return 1

    engine = Engine()
    gone = weakref.ref(engine)
    json.dumps(engine.cache.stats())
    del engine
    gc.collect()
    assert gone() is None


def test_the_stub_and_the_docstrings_say_what_there_is():
    stub = pathlib.Path(firn.__file__).with_name("_firn.pyi").read_text()
    body = stub[stub.index("class ColdCache") :]
    for word in ("store", "load", "store_state", "load_state", "prefetch", "pin", "unpin", "touch", "erase", "poll", "wait", "cancel", "fileno", "stats", "close", "verify"):
        assert re.search(rf"def {word}\(self", body), word
        assert getattr(firn.ColdCache, word).__doc__, word
    assert "[blocks][16][kv_heads][head_dim]" in firn.ColdCache.store.__doc__
