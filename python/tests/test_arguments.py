"""What Python may give, and what it hears where it may not: shapes by axis, types by name, ends of managers and of the
interpreter."""

import gc
import pathlib
import subprocess
import sys
import textwrap
import threading
import weakref

import numpy
import pytest

import firn_kv as firn

LAYERS, KV_HEADS, DIM, HEADS = 2, 2, 16, 4


def model(dtype="f16", **more):
    return firn.Model([firn.Group(LAYERS, KV_HEADS, DIM, query_heads=HEADS, dtype=dtype)], weights=firn.hash_bytes(b"w"), **more)


def cpu(dtype="f16", **more):
    settings = {"pool": {"budget": "2MiB"}, **more}
    return firn.Manager(model(dtype), device="cpu", threads=1, **settings)


def books(**more):
    return firn.Manager(model(), device="none", pool={"budget": "1MiB"}, **more)


def begun(manager, n):
    seq = manager.begin(range(n)).seq
    manager.allocate(seq, n)
    return seq, [firn.StepRows(seq, n)]


def run(program, **more):
    """A program of its own: how it ends is the test."""
    return subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120, **more)


# --- lists that change while they are read ---


class Shrinks:
    """An integer whose __index__ empties the list it is in."""

    def __init__(self, items):
        self.items = items

    def __index__(self):
        self.items.clear()
        gc.collect()
        return 3


def test_lists_may_change_while_they_are_read():
    manager = books()
    seq, _ = begun(manager, 40)
    manager.commit(seq, range(40))
    for call in (
        manager.begin,
        manager.match_prefix,
        manager.compute_keys,
        lambda tokens: manager.commit(seq, tokens),
        firn.KeyChain(b"i" * 32).keys,
    ):
        tokens = list(range(2000, 2100))
        tokens[1] = Shrinks(tokens)
        try:
            call(tokens)
        except firn.Error:
            pass
    requests = [(seq, 1)] * 50
    requests[0] = [Shrinks(requests), 1]
    with pytest.raises(firn.Error):
        manager.plan_step(requests)  # there is no sequence 3
    ranges = [(0, 16, 50, 0)] * 20
    ranges[2] = (0, 16, Shrinks(ranges), 0)
    manager.set_retention(seq, ranges)
    media = [(16 * i, 4, b"x") for i in range(50)]
    media[1] = [Shrinks(media), 4, b"x"]
    with pytest.raises(ValueError):
        manager.begin(range(40), media=media)  # they overlap

    class Float:
        def __float__(self):
            frequencies.clear()
            return 1.0

    frequencies = [Float()] + [1.0] * 7
    firn.Model([firn.Group(2, 2, 16)], rotation="halves", rotation_dims=16, inverse_frequencies=frequencies)
    assert manager.verify() == []


def test_what_has_no_order_is_no_prompt():
    manager = books()
    for wrong in ({1, 2, 3}, {1: 2}, "abc", b"abc", 5, None, [[1]], [1.5], numpy.zeros((2, 2), numpy.int32)):
        with pytest.raises(TypeError, match="tokens"):
            manager.begin(wrong)
    with pytest.raises(OverflowError, match="tokens"):
        manager.begin([1 << 40])
    with pytest.raises(ValueError, match="tokens"):
        manager.compute_keys(numpy.broadcast_to(numpy.int32(1), (1 << 27,)).copy())


def test_names_are_text_or_bytes():
    manager = books()
    for word in ("name_space", "shared_scope", "adapter"):
        with pytest.raises(TypeError, match=f"{word}: str or bytes, not int"):
            manager.begin([1], **{word: 5})
    with pytest.raises(TypeError, match="name_space"):
        manager.set_quota(5)
    with pytest.raises(TypeError, match="name_space"):
        manager.usage(None)
    with pytest.raises(UnicodeEncodeError):
        manager.begin([1], name_space="\ud800")
    with pytest.raises(TypeError, match="salt"):
        firn.KeyChain(b"i" * 32, salt=5)
    with pytest.raises(TypeError, match="keys"):
        manager.pin(b"k" * 32, 1)
    with pytest.raises(ValueError, match="keys: 32 bytes"):
        manager.unpin([b"k"])


# --- arrays ---


def test_shapes_are_checked_by_axis():
    manager = cpu()
    seq, rows = begun(manager, 6)
    good = numpy.zeros((6, KV_HEADS, DIM), numpy.float32)
    manager.append(0, rows, good, good)
    by_head = numpy.zeros((KV_HEADS, 6, DIM), numpy.float32)
    for name, k, v in (("k", by_head, good), ("v", good, by_head), ("k", good.reshape(-1), good), ("v", good, good[..., :8].copy()),
                       ("k", good.reshape(6, -1), good), ("k", good[:5], good), ("v", good, numpy.float32(1).reshape(()))):
        with pytest.raises((ValueError, TypeError), match=f"^{name}: "):
            manager.append(0, rows, k, v)
    q = numpy.zeros((6, HEADS, DIM), numpy.float32)
    for name, a, b in (("q", q.reshape(HEADS, 6, DIM), q), ("out", q, q.reshape(HEADS, 6, DIM)), ("q", q.reshape(-1), q), ("out", q, good)):
        with pytest.raises(ValueError, match=f"^{name}: "):
            manager.attend(0, rows, a, b, query_heads=HEADS, scale=1.0)
    with pytest.raises(ValueError, match=r"k: its shape is \[2\]\[6\]\[16\], but these rows need \[6 or more\]\[2\]\[16\]"):
        manager.append(0, rows, by_head, good)
    with pytest.raises(IndexError, match="layer 2"):
        manager.append(2, rows, good, good)


def test_types_strides_and_read_only_arrays_are_named():
    manager = cpu()
    seq, rows = begun(manager, 6)
    good = numpy.zeros((6, KV_HEADS, DIM), numpy.float32)
    wide = numpy.zeros((6, KV_HEADS, 2 * DIM), numpy.float32)
    for wrong in (good.astype(numpy.float64), good.astype(numpy.int32), good.astype(bool), good.astype(numpy.complex64),
                  wide[..., ::2], good[::-1], None, 5, [[1.0]], "k"):
        with pytest.raises(TypeError, match="^v: "):
            manager.append(0, rows, good, wrong)
    q = numpy.zeros((6, HEADS, DIM), numpy.float32)
    read_only = q.copy()
    read_only.flags.writeable = False
    manager.append(0, rows, good, good)
    manager.attend(0, rows, read_only, q, query_heads=HEADS, scale=1.0)
    with pytest.raises(TypeError, match="out: is read-only"):
        manager.attend(0, rows, q, read_only, query_heads=HEADS, scale=1.0)
    with pytest.raises(TypeError, match="mass"):
        manager.attend(0, rows, q, q.copy(), query_heads=HEADS, scale=1.0, mass=numpy.zeros((6, 1)))
    with pytest.raises(ValueError, match="mass"):
        manager.attend(0, rows, q, q.copy(), query_heads=HEADS, scale=1.0, mass=numpy.zeros((5, 1), numpy.float32))


def test_a_mass_that_is_too_narrow_is_not_written_beyond_its_end():
    manager = cpu()
    seq, rows = begun(manager, 40)
    good, q = numpy.zeros((40, KV_HEADS, DIM), numpy.float32), numpy.zeros((40, HEADS, DIM), numpy.float32)
    manager.append(0, rows, good, good)
    for columns in (0, 1, 2):
        with pytest.raises(ValueError, match="mass"):
            manager.attend(0, rows, q, q.copy(), query_heads=HEADS, scale=1.0, mass=numpy.zeros((40, columns), numpy.float32))
    manager.attend(0, rows, q, q.copy(), query_heads=HEADS, scale=1.0, mass=numpy.zeros((40, 3), numpy.float32))


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "uint16"])
def test_halves_are_welcome(kind):
    random = numpy.random.default_rng(5)
    if kind == "float16":
        make = lambda values: values.astype(numpy.float16)  # noqa: E731
        back = lambda array: array.astype(numpy.float32)  # noqa: E731
    else:
        ml_dtypes = pytest.importorskip("ml_dtypes")
        bits = lambda array: array.view(numpy.uint16) if kind == "uint16" else array  # noqa: E731
        make = lambda values: bits(values.astype(ml_dtypes.bfloat16))  # noqa: E731
        back = lambda array: array.view(ml_dtypes.bfloat16).astype(numpy.float32)  # noqa: E731
    n = 40
    k, v = (make(random.standard_normal((n, KV_HEADS, DIM), dtype=numpy.float32)) for _ in "kv")
    q = make(random.standard_normal((n, HEADS, DIM), dtype=numpy.float32))
    whole, halves = cpu("f32"), cpu("f32")
    want = numpy.zeros((n, HEADS, DIM), numpy.float32)
    got = make(numpy.full((n + 2, HEADS, DIM), 7, numpy.float32))
    seq, rows = begun(whole, n)
    whole.append(0, rows, back(k), back(v))
    whole.attend(0, rows, back(q), want, query_heads=HEADS, scale=0.25)
    seq, rows = begun(halves, n)
    halves.append(0, rows, k, v)
    halves.attend(0, rows, q, got, query_heads=HEADS, scale=0.25)
    numpy.testing.assert_array_equal(got[:n], make(want))
    numpy.testing.assert_array_equal(back(got)[n:], 7)  # rows that no part names are left alone


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_keys_and_values_come_back(dtype):
    manager = cpu(dtype, host={"budget": "8MiB"}, protect={"recent": 16}, mover={"worker": False})
    n = 200
    random = numpy.random.default_rng(6)
    seq, rows = begun(manager, n)
    sent = []
    for layer in range(LAYERS):
        sent.append([random.standard_normal((n, KV_HEADS, DIM), dtype=numpy.float32) for _ in "kv"])
        manager.append(layer, rows, *sent[-1])
    manager.commit(seq, range(n))
    stored = {"f16": numpy.float16, "bf16": numpy.uint16, "f32": numpy.float32}[dtype]
    hot = []
    for cold in (False, True):
        if cold:
            manager.wait_idle()
            assert manager.empty_pool() > 5
            assert (manager.block_table(seq) == firn.NO_SLOT).any()
        for layer in range(LAYERS):
            k, v = (numpy.zeros((n, KV_HEADS, DIM), stored) for _ in "kv")
            manager.gather(seq, layer, k, v)
            wide_k, wide_v = (numpy.zeros((n - 3, KV_HEADS, DIM), numpy.float32) for _ in "kv")
            manager.gather(seq, layer, wide_k, wide_v, first=3)
            for got, wide, want in ((k, wide_k, sent[layer][0]), (v, wide_v, sent[layer][1])):
                as_floats = (got.astype(numpy.uint32) << 16).view(numpy.float32) if dtype == "bf16" else got.astype(numpy.float32)
                numpy.testing.assert_allclose(as_floats, want, rtol=2**-8, atol=1e-6)
                numpy.testing.assert_array_equal(as_floats[3:], wide)
                if dtype == "f16":
                    numpy.testing.assert_array_equal(got, want.astype(numpy.float16))
                if dtype == "f32":
                    numpy.testing.assert_array_equal(got, want)
            if not cold:
                hot.append((k, v))
            else:
                numpy.testing.assert_array_equal(k, hot[layer][0])
                numpy.testing.assert_array_equal(v, hot[layer][1])
    out = numpy.zeros((n, KV_HEADS, DIM), stored)
    with pytest.raises(firn.InvalidArgument, match="committed"):
        manager.gather(seq, 0, out, out.copy(), first=1)
    with pytest.raises(ValueError, match="out_v"):
        manager.gather(seq, 0, out, out[:-1].copy())
    with pytest.raises(TypeError, match="out_k"):
        manager.gather(seq, 0, out.astype(numpy.float64), out)
    view = manager.slot_view(1, 1)
    assert view.k != 0 and view.v > view.k and view.token_stride == DIM * out.itemsize
    with pytest.raises(firn.InvalidArgument, match="slot 0"):
        manager.slot_view(0, 0)
    with pytest.raises(firn.Unavailable):
        books().slot_view(1, 0)


# --- sequences that are gone, sizes, reprs ---


def test_a_sequence_that_is_gone_is_not_an_empty_one():
    manager = books()
    seq, _ = begun(manager, 20)
    assert manager.token_count(seq) == 0
    manager.free(seq)
    for call in (manager.block_table, manager.block_keys, manager.block_states, manager.token_count, manager.usable_tokens):
        with pytest.raises(firn.InvalidArgument, match=f"sequence {seq} does not exist"):
            call(seq)


def test_a_fence_of_another_manager_is_an_error():
    one, other = cpu(), cpu()
    seq, rows = begun(one, 16)
    k = numpy.zeros((16, KV_HEADS, DIM), numpy.float32)
    fence = one.append(0, rows, k, k)
    mine, _ = begun(other, 16)
    for call in (lambda: other.free(mine, fence), lambda: other.preempt(mine, fence), lambda: other.wait_fence(fence, 1000)):
        with pytest.raises(firn.InvalidArgument, match="fence"):
            call()
    for nothing in (5, "fence", object()):
        with pytest.raises(TypeError):
            other.free(mine, nothing)
    assert other.verify() == [] and other.token_count(mine) == 0
    one.wait_fence(fence, 1 << 40)
    one.free(seq, fence)
    other.free(mine)


def test_sizes_may_be_ints_and_pools_have_slots():
    for budget in (1 << 20, numpy.int64(1 << 20), "1MiB"):
        manager = firn.Manager(model(), device="none", pool={"budget": budget})
        assert manager.config()["pool.budget"] == "1MiB"
    with pytest.raises(ValueError, match="pool.budget"):
        firn.Manager(model(), device="none", pool={"budget": -1})
    with pytest.raises(TypeError, match="pool.budget: str, int or bool, not float"):
        firn.Manager(model(), device="none", pool={"budget": 1e9})
    assert firn.Manager(model(), device="none", pool={"slots": 37}).stats()["slots_total"] == 37
    assert firn.Manager(model(), device="cpu", threads=1, pool={"slots": 50}, host={"budget": 8 << 20}).stats()["slots_total"] == 50


def test_everything_says_what_it_is():
    manager = cpu(events={"capacity": 64})
    seq, rows = begun(manager, 20)
    manager.commit(seq, range(20))
    key = manager.block_keys(seq)[0]
    things = [manager, manager.pool, model(), firn.Group(2, 2, 16), firn.KeyChain(b"i" * 32), manager.begin([1]), rows[0],
              manager.match_prefix([1, 2]), manager.plan_step([(seq, 1)]), manager.slot_info(1), manager.slot_view(1, 0),
              manager.take_events(), manager.take_events().events[0], manager.take_events().events[0].block,
              manager.event_snapshot(), manager.explain(range(20)), manager.explain(range(20)).blocks[0],
              manager.pin([key], 1 << 40), manager.usage(), manager.append(0, rows[:0], *(numpy.zeros((0, KV_HEADS, DIM), numpy.float32),) * 2)]
    manager.acquire_lease("me", [key], 1 << 40)
    things.append(manager.leases()[0])
    for thing in things:
        assert type(thing).__name__ in repr(thing) and " object at 0x" not in repr(thing), repr(thing)


# --- the end ---


def test_after_close_every_call_raises():
    manager = cpu()
    seq, rows = begun(manager, 5)
    assert not manager.closed
    manager.close()
    manager.close()
    assert manager.closed and "closed" in repr(manager)
    good = numpy.zeros((5, KV_HEADS, DIM), numpy.float32)
    q = numpy.zeros((5, HEADS, DIM), numpy.float32)
    for call in (lambda: manager.begin([1]), manager.stats, manager.dump, manager.ledger, manager.config, manager.page_sets, manager.verify,
                 lambda: manager.free(seq), lambda: manager.append(0, rows, good, good), lambda: manager.block_table(seq),
                 lambda: manager.attend(0, rows, q, q, query_heads=HEADS, scale=1.0), lambda: manager.gather(seq, 0, good, good),
                 lambda: manager.__enter__(), manager.wait_idle, lambda: len(manager.pool)):
        with pytest.raises(firn.InvalidArgument, match="closed"):
            call()
    with cpu() as inner:
        inner.begin([1])
    assert inner.closed


def test_close_beside_calls_of_other_threads():
    for _ in range(20):
        manager = cpu(host={"budget": "4MiB"})
        failures = []

        def work():
            try:
                for turn in range(10000):
                    begun_here = manager.begin(range(turn, turn + 30))
                    manager.allocate(begun_here.seq, 30 - begun_here.match.tokens)
                    manager.free(begun_here.seq)
            except firn.InvalidArgument as error:
                if "closed" not in str(error):
                    failures.append(error)
            except firn.NoSpace:
                pass

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        manager.close()
        for thread in threads:
            thread.join(timeout=60)
        assert not failures and not any(thread.is_alive() for thread in threads)


def test_a_clock_is_callable_and_its_failures_are_the_calls():
    for wrong in (5, "now", [1]):
        with pytest.raises(TypeError, match="clock"):
            books(clock=wrong)
    with pytest.raises(ZeroDivisionError):
        books(clock=lambda: 1 // 0)
    answers = iter([1, 2, 3.5, None, 1 << 70, 4, 5, 6])
    manager = books(clock=lambda: next(answers))  # 1
    seq = manager.begin(range(40)).seq  # 2
    for error in (TypeError, TypeError, OverflowError):
        with pytest.raises(error, match="clock"):
            manager.allocate(seq, 40)
    manager.allocate(seq, 40)
    manager.commit(seq, range(40))
    assert manager.token_count(seq) == 40
    with pytest.raises(StopIteration):
        manager.free(seq)
    with pytest.raises(StopIteration):  # nothing was done
        manager.token_count(seq)


def test_a_clock_that_closes_its_manager():
    manager = None

    def clock():
        if manager is not None:
            manager.close()
        return 1

    manager = books(clock=clock)
    with pytest.raises(firn.InvalidArgument, match="closed"):
        manager.begin([1, 2])


def test_a_manager_with_a_clock_of_its_owner_is_collected():
    class Engine:
        def __init__(self):
            self.manager = cpu(clock=self.now, host={"budget": "4MiB"})

        def now(self):
            return 5

    gc.collect()
    engine = Engine()
    there = weakref.ref(engine.manager), weakref.ref(engine)
    del engine
    gc.collect()
    assert there[0]() is None and there[1]() is None


EXIT = """
    import threading, firn_kv as firn, numpy
    model = firn.Model([firn.Group(2, 2, 16, query_heads=4)], weights=b"w" * 32)
    class Engine:
        def __init__(self):
            self.manager = firn.Manager(model, device="cpu", threads=1, clock=self.now, pool={"budget": "2MiB"},
                                        host={"budget": "8MiB"}, protect={"recent": 16})
        def now(self):
            return sum(range(1000))
        def work(self, first=0):
            n = 200
            seq = self.manager.begin(range(first, first + n)).seq
            self.manager.allocate(seq, n)
            k = numpy.random.default_rng(1).standard_normal((n, 2, 16), dtype=numpy.float32)
            for layer in range(2):
                self.manager.append(layer, [firn.StepRows(seq, n)], k, k)
            self.manager.commit(seq, range(first, first + n))
            self.manager.free(seq)
    engine = Engine()
    engine.work()
"""


@pytest.mark.parametrize("more", [
    "",
    "import builtins; builtins.kept = engine",
    "engine.circle = engine; del engine",
    "import sys; sys.modules['kept'] = engine",
    "import atexit; atexit.register(lambda: None)",
    "raise SystemExit(0)",
    # A thread that is within a call, or between two, while the interpreter goes away.
    "threading.Thread(target=lambda: [engine.work(i) for i in range(10**9)], daemon=True).start()",
    "threading.Thread(target=lambda: [engine.manager.stats() for i in range(10**9)], daemon=True).start()",
    "[threading.Thread(target=lambda: [engine.manager.dump() for i in range(10**9)], daemon=True).start() for _ in range(4)]",
])
def test_the_interpreter_ends_well_beside_a_manager(more):
    for _ in range(3):
        done = run(textwrap.dedent(EXIT) + more)
        assert done.returncode == 0, (done.returncode, done.stderr)
        assert "terminate" not in done.stderr and "Fatal" not in done.stderr, done.stderr


# --- what is shipped ---


def test_the_wheel_has_its_licences_and_the_program():
    importlib_metadata = pytest.importorskip("importlib.metadata")
    try:
        files = importlib_metadata.files("firn-kv")
    except importlib_metadata.PackageNotFoundError:
        pytest.skip("not installed from a wheel")
    names = {pathlib.PurePath(str(file)).name for file in files}
    assert {"LICENSE", "NOTICE", "THIRD_PARTY.md", "_firn.pyi", "py.typed"} <= names
    assert any(str(file).endswith("firn_kv/bin/firn") for file in files)
    program = pathlib.Path(sys.executable).with_name("firn")
    done = subprocess.run([program, "version"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("firn ")
