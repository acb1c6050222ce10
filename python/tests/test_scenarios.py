"""Published scenarios of prefix caching (vLLM's test_prefix_caching, described in numbers V1 to V28), replayed one to
one: blocks of 16 tokens, a pool of 11 with the null block, ids handed out in order."""

import pytest

import firn_kv as firn

BLOCK = firn.BLOCK_TOKENS


def make(blocks=11, **settings):
    model = firn.Model([firn.Group(16, 4, 64)], weights=firn.hash_bytes(b"scenario"))
    return firn.Manager(model, device="none", pool={"budget": f"{blocks * model.block_bytes}B"}, **settings)


class Request:
    """A prompt that is computed at once, and how a scheduler would run it."""

    def __init__(self, manager, tokens, **options):
        self.manager, self.tokens = manager, list(tokens)
        begun = manager.begin(self.tokens, **options)
        self.seq, self.hit = begun.seq, begun.match.tokens
        try:
            manager.allocate(self.seq, len(self.tokens) - self.hit)
        except firn.Error:
            manager.free(self.seq)
            raise
        manager.commit(self.seq, self.tokens[self.hit :])

    def append(self, tokens):
        self.manager.allocate(self.seq, len(tokens))
        self.manager.commit(self.seq, tokens)
        self.tokens += tokens

    @property
    def ids(self):
        return self.manager.block_table(self.seq).tolist()

    def free(self):
        self.manager.free(self.seq)


@pytest.fixture
def manager():
    made = make()
    yield made
    assert made.verify() == []
    stats = made.stats()
    misses = sum(value for name, value in stats.items() if name.startswith("misses."))
    assert stats["prefix_cache_queries"] == stats["prefix_cache_hits"] + misses


COMMON = [i for i in range(3) for _ in range(BLOCK)]  # three full blocks


def test_v1_to_v5_prefill(manager):
    pool = manager.pool
    assert len(pool) == 11 and pool.null_block == 0 and pool.free_order() == list(range(1, 11))
    # V1
    first = Request(manager, COMMON + [3] * 7)
    assert first.hit == 0 and first.ids == [1, 2, 3, 4]
    keys = manager.block_keys(first.seq)
    assert keys == manager.compute_keys(COMMON)
    assert [pool.key(block) for block in first.ids] == keys + [None]
    assert [pool.references(block) for block in first.ids] == [1, 1, 1, 1]
    # V2
    second = Request(manager, COMMON + [4] * 5)
    assert second.hit == 48 and second.ids == [1, 2, 3, 5]
    assert [pool.references(block) for block in second.ids] == [2, 2, 2, 1]
    assert pool.free_count == 5
    # V3
    first.free()
    second.free()
    assert pool.free_order() == [5, 4, 6, 7, 8, 9, 10, 3, 2, 1]
    assert [pool.key(block) for block in (1, 2, 3)] == keys and pool.references(1) == 0
    # V4
    third = Request(manager, COMMON + [5] * 5)
    assert third.hit == 48 and third.ids == [1, 2, 3, 5]
    assert pool.free_count == 6
    third.free()
    # V5
    whole = Request(manager, range(1000, 1160))
    assert whole.hit == 0 and whole.ids == [5, 4, 6, 7, 8, 9, 10, 3, 2, 1]
    assert manager.match_prefix(COMMON + [1]).tokens == 0
    assert pool.cached_count == 10 and pool.free_count == 0


def test_v6_a_request_that_does_not_read(manager):
    first = Request(manager, COMMON + [3] * 7)
    blind = Request(manager, COMMON + [3] * 7, read_cache=False)
    assert blind.hit == 0 and blind.ids == [5, 6, 7, 8]
    assert manager.block_keys(first.seq) == manager.block_keys(blind.seq)
    assert manager.stats()["duplicate_blocks"] == 3


def test_v7_decode(manager):
    request = Request(manager, COMMON + [3] * 7)
    request.append([3] * 4)
    assert request.ids == [1, 2, 3, 4] and manager.pool.key(4) is None
    request.append([3] * 8)  # across the edge
    assert request.ids == [1, 2, 3, 4, 5]
    named = manager.pool.key(4)
    assert named == manager.compute_keys(request.tokens)[3]
    request.append([9])
    assert manager.pool.key(4) == named


def test_v8_eviction_order(manager):
    a = Request(manager, list(range(5 * BLOCK + 5)))
    b = Request(manager, list(range(1000, 1000 + 3 * BLOCK)))
    assert a.ids == [1, 2, 3, 4, 5, 6] and b.ids == [7, 8, 9] and manager.pool.free_count == 1
    a.free()
    b.free()
    assert manager.pool.free_order() == [6, 10, 5, 4, 3, 2, 1, 9, 8, 7]
    c = Request(manager, list(range(2 * BLOCK)) + [7] * 3)
    assert c.hit == 2 * BLOCK and c.ids == [1, 2, 6] and manager.pool.free_count == 7


def test_v9_a_reused_block_loses_its_old_name(manager):
    small = make(blocks=3)
    first = Request(small, [1] * BLOCK)
    old = small.pool.key(1)
    first.free()
    assert small.match_prefix([1] * (BLOCK + 1)).tokens == BLOCK
    second = Request(small, [2] * (BLOCK + 5))
    assert sorted(second.ids) == [1, 2]
    assert small.match_prefix([1] * (BLOCK + 1)).tokens == 0
    assert small.match_prefix([1] * (BLOCK + 1)).first_miss == "evicted:device"
    assert old not in (small.pool.key(1), small.pool.key(2))
    assert small.pool.cached_count == 1 and small.verify() == []


def test_v11_no_capacity():
    manager = make(blocks=5)
    first = Request(manager, range(3 * BLOCK - 2), read_cache=False)
    assert len(first.ids) == 3
    first.free()
    second = Request(manager, range(100, 100 + 4 * BLOCK), read_cache=False)
    assert len(second.ids) == 4
    before = manager.pool.free_order()
    with pytest.raises(firn.NoSpace, match="live sequences hold"):
        Request(manager, range(500, 520))
    assert manager.pool.free_order() == before and manager.verify() == []


def test_v12_two_blocks_then_a_third(manager):
    request = Request(manager, range(2 * BLOCK))
    assert manager.pool.cached_count == 2
    two = manager.block_keys(request.seq)
    request.append(list(range(500, 500 + BLOCK)))
    assert manager.pool.cached_count == 3 and manager.block_keys(request.seq)[:2] == two


def test_v15_salts(manager):
    tokens = COMMON + [3] * 7
    Request(manager, tokens, name_space=b"one").free()
    assert manager.match_prefix(tokens, name_space=b"one").tokens == 48
    assert manager.match_prefix(tokens, name_space="one").tokens == 48
    assert manager.match_prefix(tokens, name_space="two").tokens == 0
    assert manager.match_prefix(tokens).tokens == 0
    keys, other = manager.compute_keys(COMMON, "one"), manager.compute_keys(COMMON, "two")
    assert not set(keys) & set(other)


def test_v17_reset(manager):
    request = Request(manager, COMMON + [3])
    with pytest.raises(firn.Unavailable):
        manager.reset()
    assert manager.match_prefix(COMMON + [3]).tokens == 48 and manager.pool.cached_count == 3
    request.free()
    manager.reset()
    assert manager.pool.cached_count == 0 and manager.pool.free_count == 10
    assert manager.match_prefix(COMMON + [3]).tokens == 0


def test_v24_copy_orders(manager):
    request = Request(manager, COMMON + [3] * 7)
    child = manager.fork(request.seq)
    (order,) = manager.allocate(child, 1)
    assert order.from_slot == 4 and order.to_slot == 5 and order.tokens == 7
    assert manager.pool.references(4) == 1 and manager.pool.key(5) is None
    # A prompt that leaves a full block in its middle copies what it shares.
    partial = make(partial_reuse=True)
    whole = Request(partial, COMMON)
    begun = partial.begin(COMMON[: 2 * BLOCK + 9])
    assert begun.match.tokens == 2 * BLOCK + 8 and begun.match.tokens_partial == 8
    assert partial.block_table(begun.seq).tolist() == [1, 2, 3] and partial.pool.references(3) == 2
    (order,) = partial.allocate(begun.seq, 1)
    assert order.from_slot == 3 and order.to_slot not in (0, 1, 2, 3) and order.tokens == 8
    assert partial.pool.references(3) == 1 and partial.pool.key(3) == partial.block_keys(whole.seq)[2]
    assert partial.pool.key(order.to_slot) is None and partial.verify() == []


def test_v25_the_whole_sequence_must_fit(manager):
    Request(manager, range(6 * BLOCK))
    long = list(range(2000, 2000 + 6 * BLOCK))
    before = manager.pool.free_order()
    with pytest.raises(firn.Error):
        manager.begin(long, admission="must_fit")
    assert manager.pool.free_order() == before
    begun = manager.begin(long)  # without the flag: in, and its first chunk fits
    assert manager.allocate(begun.seq, 2 * BLOCK) == []


def test_v26_lookahead_slots_are_not_published(manager):
    request = manager.begin(COMMON).seq
    manager.allocate(request, len(COMMON), lookahead=4)
    assert manager.block_table(request).tolist() == [1, 2, 3, 4]
    manager.commit(request, COMMON)
    assert manager.pool.cached_count == 3
    manager.rewind(request, 40)  # speculation that was wrong: never matched again
    assert manager.match_prefix(COMMON + [1]).tokens == 32


def test_v27_the_queue():
    manager = make(blocks=6)
    pool = manager.pool
    assert pool.free_order() == [1, 2, 3, 4, 5]
    everything = Request(manager, range(5 * BLOCK))
    assert everything.ids == [1, 2, 3, 4, 5] and pool.free_order() == []
    extra = manager.begin([1]).seq
    with pytest.raises(firn.NoSpace):  # from empty
        manager.allocate(extra, 1)
    manager.free(extra)
    everything.free()
    assert pool.free_order() == [5, 4, 3, 2, 1]  # tail first
    middle = manager.begin(list(range(3 * BLOCK + 1))).seq  # takes 1, 2 and 3 out of the middle and the end
    assert pool.free_order() == [5, 4] and pool.free_count == 2
    manager.allocate(middle, 5)
    assert manager.block_table(middle).tolist() == [1, 2, 3, 5]
    manager.free(middle)  # 5 holds nothing of value: to the head
    assert pool.free_order() == [5, 4, 3, 2, 1] and manager.verify() == []


def test_v28_watermark():
    manager = make(admission={"watermark": 10})
    alone = Request(manager, list(range(10 * BLOCK - 1)), admission="must_fit")  # nothing else is scheduled: admitted
    alone.free()
    manager.reset()
    Request(manager, range(5000, 5000 + 4 * BLOCK))
    with pytest.raises(firn.Error):  # would leave less than a tenth
        manager.begin(range(7000, 7000 + 6 * BLOCK), admission="must_fit")
    assert manager.begin(range(7000, 7000 + 5 * BLOCK), admission="must_fit").seq
