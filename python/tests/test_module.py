"""The module itself: arrays are not copied, failures are exceptions, threads do not wait for each other's interpreter."""

import pathlib
import threading

import numpy
import pytest

import firn_kv as firn

LAYERS, KV_HEADS, DIM, HEADS = 2, 2, 16, 4


def model(**more):
    return firn.Model([firn.Group(LAYERS, KV_HEADS, DIM, query_heads=HEADS)], weights=firn.hash_bytes(b"w"), **more)


def cpu(**more):
    return firn.Manager(model(), device="cpu", threads=1, pool={"budget": "2MiB"}, **more)


def plain_attention(k, v, q, scale):
    out = numpy.empty_like(q)
    for row in range(q.shape[0]):
        for head in range(HEADS):
            kv = head // (HEADS // KV_HEADS)
            logits = (k[: row + 1, kv] @ q[row, head]) * scale
            weights = numpy.exp(logits - logits.max())
            out[row, head] = weights @ v[: row + 1, kv] / weights.sum()
    return out


def compute(manager, tokens, random):
    begun = manager.begin(tokens)
    n = len(tokens)
    manager.allocate(begun.seq, n)
    rows = [firn.StepRows(begun.seq, n)]
    results = []
    for layer in range(LAYERS):
        k, v = (random.standard_normal((n, KV_HEADS, DIM), dtype=numpy.float32) for _ in "kv")
        q = random.standard_normal((n, HEADS, DIM), dtype=numpy.float32)
        out = numpy.zeros_like(q)
        manager.append(layer, rows, k, v)
        mass = numpy.full((n, (n + 15) // 16), -1, dtype=numpy.float32)
        manager.attend(layer, rows, q, out, query_heads=HEADS, scale=0.25, mass=mass)
        results.append((k, v, q, out, mass))
    manager.commit(begun.seq, tokens)
    return begun.seq, results


def test_attention_writes_into_the_array_it_was_given():
    manager = cpu()
    seq, results = compute(manager, numpy.arange(70, dtype=numpy.int32), numpy.random.default_rng(7))
    for k, v, q, out, mass in results:
        numpy.testing.assert_allclose(out, plain_attention(k, v, q, 0.25), atol=3e-3)
        numpy.testing.assert_allclose(mass.sum(axis=1), HEADS, atol=1e-3)
        assert mass[0, 1:].max() == 0  # what is to come is worth nothing
    assert manager.verify() == []
    manager.free(seq)


def test_arrays_that_would_have_to_be_copied_are_refused():
    manager = cpu()
    seq = manager.begin([1, 2, 3]).seq
    manager.allocate(seq, 2)
    rows = [firn.StepRows(seq, 2)]
    good = numpy.zeros((2, HEADS, DIM), numpy.float32)
    with pytest.raises(TypeError):  # a copy of out would be written and lost
        manager.attend(0, rows, good, good.astype(numpy.float64), query_heads=HEADS, scale=1.0)
    with pytest.raises(TypeError):
        manager.attend(0, rows, good, good.transpose(2, 1, 0), query_heads=HEADS, scale=1.0)
    read_only = good.copy()
    read_only.flags.writeable = False
    with pytest.raises(TypeError):
        manager.attend(0, rows, good, read_only, query_heads=HEADS, scale=1.0)
    with pytest.raises(ValueError, match="rows need"):  # an array that is too short is not read beyond its end
        manager.attend(0, rows, good[:1], good, query_heads=HEADS, scale=1.0)


def test_a_block_table_is_an_array_of_its_own():
    manager = cpu()
    seq, _ = compute(manager, list(range(40)), numpy.random.default_rng(1))
    table = manager.block_table(seq)
    assert table.dtype == numpy.uint32 and table.tolist() == [1, 2, 3]
    manager.free(seq)
    assert table.tolist() == [1, 2, 3]


def test_tokens_of_any_kind_mean_the_same():
    manager = firn.Manager(model(), device="none", pool={"budget": "1MiB"})
    tokens = list(range(40))
    keys = manager.compute_keys(tokens)
    for form in (tuple(tokens), range(40), numpy.arange(40, dtype=numpy.int32), numpy.arange(40), iter(tokens)):
        assert manager.compute_keys(form) == keys
    assert manager.compute_keys(numpy.arange(80, dtype=numpy.int32)[::2]) == manager.compute_keys(range(0, 80, 2))
    with pytest.raises(OverflowError):
        manager.compute_keys([1 << 31])
    with pytest.raises(TypeError):
        manager.compute_keys(["a"])
    with pytest.raises(TypeError):
        manager.compute_keys([1.5])
    with pytest.raises(TypeError):
        manager.compute_keys(None)


def test_failures_are_exceptions_with_a_sentence():
    with pytest.raises(firn.InvalidArgument, match="pool.budgt"):
        firn.Manager(model(), pool={"budgt": "1MiB"})
    with pytest.raises(ValueError):
        firn.Model([firn.Group(0, 1, 16)])
    with pytest.raises(firn.InvalidArgument, match="/nowhere.yaml"):
        firn.Manager(model(), pathlib.Path("/nowhere.yaml"))
    manager = cpu()
    with pytest.raises(firn.InvalidArgument, match="sequence 99"):
        manager.allocate(99, 1)
    with pytest.raises(firn.Error):
        manager.slot_info(0)
    with pytest.raises(IndexError):
        manager.block_table(1, 7)
    with pytest.raises(ValueError):
        manager.begin([1], admission="perhaps")
    assert issubclass(firn.NoSpace, firn.Error) and not issubclass(firn.NoSpace, ValueError)


def test_a_clock_from_python():
    now = [5]
    manager = firn.Manager(model(), clock=lambda: now[0], device="none", pool={"budget": "1MiB"})
    seq = manager.begin(list(range(40))).seq
    manager.allocate(seq, 40)
    manager.commit(seq, range(40))
    now[0] = 10
    manager.free(seq)
    assert manager.match_prefix(range(40)).tokens == 32 and manager.verify() == []


def test_threads():
    clocked = iter(range(1, 1 << 40))
    manager = firn.Manager(model(), clock=lambda: next(clocked), device="none", pool={"budget": "4MiB"})
    failures = []

    def work(number):
        try:
            for turn in range(50):
                tokens = numpy.arange(number * 1000, number * 1000 + 40 + turn, dtype=numpy.int32)
                begun = manager.begin(tokens)
                manager.allocate(begun.seq, len(tokens) - begun.match.tokens)
                manager.commit(begun.seq, tokens[begun.match.tokens :])
                manager.free(begun.seq)
        except Exception as error:  # noqa: BLE001: whatever it is, the test shows it
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not failures and not any(thread.is_alive() for thread in threads)
    assert manager.verify() == [] and manager.stats()["sequences"] == 0


def test_the_host_tier_and_back():
    manager = firn.Manager(
        model(), device="cpu", threads=1, mover={"worker": False}, protect={"recent": 16},
        pool={"budget": "1MiB"}, host={"budget": "16MiB"},
    )
    tokens = list(range(100))
    seq, _ = compute(manager, tokens, numpy.random.default_rng(3))
    before = [manager.hash_slot(int(slot)) for slot in manager.block_table(seq)[:6]]
    manager.free(seq)
    manager.wait_idle()
    assert manager.empty_pool() > 0
    begun = manager.begin(tokens)
    assert begun.match.tokens == begun.match.tokens_on_host == 96
    ticket = manager.prefetch(begun.seq)
    manager.wait(ticket)
    assert manager.done(ticket)
    assert [manager.hash_slot(int(slot)) for slot in manager.block_table(begun.seq)[:6]] == before
    manager.free(begun.seq)
    assert manager.ledger()["host"]["spent"] <= manager.ledger()["host"]["limit"]


def test_types_are_shipped():
    folder = pathlib.Path(firn.__file__).parent
    assert (folder / "py.typed").exists()
    stub = (folder / "_firn.pyi").read_text()
    for word in ("match_prefix", "begin", "allocate", "commit", "fork", "rewind", "free", "take_events", "explain"):
        assert f"def {word}(" in stub
