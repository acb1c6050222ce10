"""cold.py: an engine that owns its K/V stores 1,000 blocks in firn's cold side, forgets them, and loads them back bit for bit."""
import numpy as np

import firn_kv as firn

LAYERS, BLOCKS, HEADS, DIM, BATCH = 2, 1000, 2, 32, 100
kv = np.random.default_rng(1).standard_normal((LAYERS, 2, BLOCKS, 16, HEADS, DIM)).astype(np.float16)
states = np.arange(BLOCKS // 8 * 1024, dtype=np.uint32).reshape(-1, 1024)  # of the engine's own, beside each eighth block
before = kv.copy(), states.copy()

with firn.ColdCache(firn.Model([firn.Group(LAYERS, HEADS, DIM)]), budget_bytes=64 << 20) as cache:
    keys = cache.keys([f"my prompt, block {i}" for i in range(BLOCKS)], "example")
    batches = [slice(first, first + BATCH) for first in range(0, BLOCKS, BATCH)]

    for part in batches:  # kv[layer]: [2, blocks, tokens, heads, dim]
        cache.wait(cache.store(keys[part], kv[:, :, part], first_position=16 * part.start))
    cache.wait(cache.store_state(keys[7::8], states, bound=True))

    kv.fill(0), states.fill(0)  # forgotten
    hits = cache.lookup(keys).hits

    for part in batches:
        cache.wait(cache.load(keys[part], kv[:, :, part], first_position=16 * part.start))
    cache.wait(cache.load_state(keys[7::8], states))

assert np.array_equal(before[0].view(np.uint16), kv.view(np.uint16)) and np.array_equal(before[1], states)
print(f"{hits} of {BLOCKS} blocks and {len(states)} states came back")
