#!/usr/bin/env python3
"""The same requests through vLLM's block manager, through firn's Python module and through firn's C++ library.

    python3 -m venv /tmp/vllm && /tmp/vllm/bin/pip install vllm==0.33.0    # 9 GB; nothing of it needs a GPU here
    ./python/test && /tmp/vllm/bin/pip install --no-deps build/wheels/firn_kv-*.whl
    cmake --build build/release --target firn_vllm_compare
    /tmp/vllm/bin/python bench/vllm_compare.py

Without a package it needs this says which and ends well: nobody has to have vLLM. vLLM's own BlockPool and KVCacheManager
run as they are in the wheel. A request is, on every side and in this order:

    look-up      vLLM: get_computed_blocks                  firn: begin
    allocation   vLLM: allocate_slots, which caches too     firn: allocate, commit
    an answer    vLLM: append_output_token_ids and          firn: allocate, commit
      (--answers)  allocate_slots, for every token
    the end      vLLM: free, when --live others have come   firn: free

An operation is one look-up, one allocation (with its caching) or one end. Block size 16, as many blocks, least recently
used. Each request must hit the same number of tokens on all sides, or there is no ratio. Processor time of one thread.
vLLM hashes a prompt when its Request is made; that is counted to the look-up, as firn's begin does it, and shown apart.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK_TOKENS = 16


def need(name: str):
    try:
        return __import__(name)
    except ImportError as error:
        print(f"skipped: no package {name} for {sys.executable} ({error}); the top of {Path(__file__).name} says how")
        sys.exit(0)


# --- the requests: sim/trace_tokens.h makes the same tokens ---

VOCABULARY = 128_000
TRACE_BLOCK_TOKENS = 512
MASK = (1 << 64) - 1


def tokens_of(np, name: int, count: int):
    """token(name, 0), token(name, 1), ... of TokenMaker."""
    with np.errstate(over="ignore"):
        x = np.uint64(name * 0x1000003 & MASK) + np.arange(count, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x % np.uint64(VOCABULARY)).astype(np.int32)


def read_requests(np, path: str, most: int, answers: bool):
    text = subprocess.run(["zstd", "-dc", path], check=True, capture_output=True).stdout
    requests = []
    for number, line in enumerate(text.splitlines()[:most]):
        fields = json.loads(line)
        length = fields["input_length"]
        parts = [tokens_of(np, block + 1, TRACE_BLOCK_TOKENS) for block in fields["hash_ids"]]
        prompt = np.concatenate(parts)[:length]
        assert len(prompt) == length
        answer = tokens_of(np, (1 << 63) + number, fields["output_length"])[:-1] if answers else []
        requests.append((prompt, answer))
    return requests


# --- vLLM ---

def vllm_side(requests, blocks: int, live_most: int, hash_name: str):
    import torch
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.request import Request

    hash_function = get_hash_fn_by_name(hash_name)
    init_none_hash(hash_function)
    hasher = get_request_block_hasher(BLOCK_TOKENS, hash_function)
    spec = FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=8, head_size=128, dtype=torch.float16)
    manager = KVCacheManager(
        KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]),
        max_model_len=1 << 20, scheduler_block_size=BLOCK_TOKENS, hash_block_size=BLOCK_TOKENS)
    sampling = SamplingParams(max_tokens=1 << 16)
    given = [(str(i), prompt.tolist(), [int(token) for token in answer]) for i, (prompt, answer) in enumerate(requests)]
    hits, live, making = [], deque(), 0.0
    gc.collect()
    gc.freeze()
    gc.disable()  # vLLM freezes its heap at the start too
    start = time.process_time()
    for name, prompt, answer in given:
        if len(live) == live_most:
            manager.free(live.popleft())
        before = time.process_time()
        request = Request(name, prompt, sampling, None, block_hasher=hasher)
        making += time.process_time() - before
        found, hit = manager.get_computed_blocks(request)[:2]
        new = len(prompt) - hit
        assert manager.allocate_slots(request, new, hit, found) is not None
        request.num_computed_tokens = len(prompt)
        for token in answer:
            request.append_output_token_ids(token)
            assert manager.allocate_slots(request, 1) is not None
            request.num_computed_tokens += 1
        live.append(request)
        hits.append(hit)
    for request in live:
        manager.free(request)
    seconds = time.process_time() - start
    gc.enable()
    gc.unfreeze()
    assert manager.block_pool.get_num_free_blocks() == blocks - 1
    return hits, seconds, making


# --- firn's Python module ---

def firn_side(firn, requests, blocks: int, live_most: int, lists: bool):
    model = firn.Model([firn.Group(32, 8, 128)], weights=b"\1" * 32)
    manager = firn.Manager(model, device="none", threads=1, mover={"worker": False},
                           pool={"budget": f"{blocks * model.block_bytes // 1024}KiB"})
    assert len(manager.pool) == blocks
    given = [(prompt.tolist() if lists else prompt, [[int(token)] for token in answer] if lists else
              [answer[i:i + 1] for i in range(len(answer))]) for prompt, answer in requests]
    hits, live = [], deque()
    gc.collect()
    gc.disable()
    start = time.process_time()
    for prompt, answer in given:
        if len(live) == live_most:
            manager.free(live.popleft())
        begun = manager.begin(prompt)
        seq, hit = begun.seq, begun.match.tokens
        manager.allocate(seq, len(prompt) - hit)
        manager.commit(seq, prompt[hit:])
        for token in answer:
            manager.allocate(seq, 1)
            manager.commit(seq, token)
        live.append(seq)
        hits.append(hit)
    for seq in live:
        manager.free(seq)
    seconds = time.process_time() - start
    gc.enable()
    assert not manager.verify()
    return hits, seconds


def cpp_side(program: str, arguments, answers: bool):
    out = subprocess.run([program, arguments.trace, str(arguments.requests), str(arguments.blocks), str(arguments.live),
                          str(int(answers)), str(arguments.repeats)], check=True, capture_output=True, text=True).stdout
    return json.loads(out)


def compare(modules, arguments, answers: bool):
    np, firn, vllm = modules
    requests = read_requests(np, arguments.trace, arguments.requests, answers)
    operations = sum(3 + len(answer) for _, answer in requests)
    rows, all_hits = [], []

    def row(name, hits, seconds, hashing):
        rows.append((name, statistics.median(seconds), statistics.median(hashing) if hashing else None))
        all_hits.append(hits)

    for hash_name in arguments.hashes.split(","):
        runs = [vllm_side(requests, arguments.blocks, arguments.live, hash_name) for _ in range(arguments.repeats)]
        row(f"vLLM {vllm.__version__}, {hash_name}", runs[0][0], [run[1] for run in runs], [run[2] for run in runs])
    cpp = cpp_side(arguments.program, arguments, answers)
    for lists in (True, False):
        runs = [firn_side(firn, requests, arguments.blocks, arguments.live, lists) for _ in range(arguments.repeats)]
        row("firn, Python, " + ("lists" if lists else "NumPy"), runs[0][0], [run[1] for run in runs],
            cpp["hash_seconds"])
    row("firn, C++", cpp["hits"], cpp["seconds"], cpp["hash_seconds"])

    same = all(hits == all_hits[0] for hits in all_hits)
    tokens = sum(len(prompt) for prompt, _ in requests)
    print(f"\n{len(requests):,} requests{' with answers' if answers else ''}, {operations:,} operations, {tokens:,} prompt "
          f"tokens, {arguments.blocks:,} blocks, {arguments.live} alive at once")
    print(f"hits {sum(all_hits[0]):,} tokens, evictions {cpp['evictions']:,}: "
          + ("the same in every request on all sides" if same else "NOT THE SAME: no ratio is worth anything"))
    print(f"{'':34}{'seconds':>9}{'ops/s':>12}{'ratio':>8}{'of it hashing':>15}{'without':>9}{'ops/s':>12}{'ratio':>8}")
    first = rows[0]
    for name, seconds, hashing in rows:
        rest = seconds - hashing
        ratio = (f"{first[1] / seconds:8.1f}", f"{(first[1] - first[2]) / rest:8.1f}") if same else ("    void",) * 2
        print(f"{name:34}{seconds:9.3f}{operations / seconds:12,.0f}{ratio[0]}{hashing:15.3f}{rest:9.3f}"
              f"{operations / rest:12,.0f}{ratio[1]}")
    return same, operations, {name: seconds for name, seconds, _ in rows}


def compare_answers(without, with_answers):
    """What decoding a token costs: the difference of the two."""
    tokens = with_answers[1] - without[1]
    each = {name: (seconds - without[2][name]) / tokens for name, seconds in with_answers[2].items()}
    first = next(iter(each.values()))
    print(f"\nthe difference: {tokens:,} tokens decoded, each with its allocation")
    for name, seconds in each.items():
        print(f"{name:34}{seconds * 1e9:9,.0f} ns{1 / seconds:15,.0f} a second{first / seconds:8.1f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", default=str(ROOT / "tests/data/traces/conversation_2000.jsonl.zst"))
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--blocks", type=int, default=65_536, help="with the null block")
    parser.add_argument("--live", type=int, default=8, help="sequences alive at once")
    parser.add_argument("--hashes", default="sha256", help="of vLLM: sha256 (its default), sha256_cbor, xxhash")
    parser.add_argument("--repeats", type=int, default=3, help="medians of so many")
    parser.add_argument("--program", default=str(ROOT / "build/release/bin/firn_vllm_compare"))
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    modules = need("numpy"), need("firn_kv"), need("vllm")
    if not Path(arguments.program).exists():
        print(f"skipped: no {arguments.program}; cmake --build build/release --target firn_vllm_compare")
        sys.exit(0)
    print(f"Python {sys.version.split()[0]}, vLLM {modules[2].__version__}, firn {modules[1].__version__}")
    without, with_answers = (compare(modules, arguments, answers) for answers in (False, True))
    if without[0] and with_answers[0]:
        compare_answers(without, with_answers)
    sys.exit(0 if without[0] and with_answers[0] else 1)


if __name__ == "__main__":
    main()
