#!/usr/bin/env python3
"""The same streams through libCacheSim (PyPI: libcachesim, GPL, so only ever a yardstick) and through firn.

usage: compare_libcachesim.py FIRN TRACE [TRACE ...]

Access misses must be equal for every policy both have, at several capacities. Exit code 77 (skipped) when the package
or a packer is missing. libCacheSim's S3-FIFO of today fills main before the first eviction: that is s3fifo_fill here.
"""
import gzip
import json
import subprocess
import sys

try:
    import libcachesim
except ImportError:
    print("skipped: python3 has no module libcachesim (pip install libcachesim)")
    sys.exit(77)

POLICIES = {"fifo": libcachesim.FIFO, "lru": libcachesim.LRU, "lfu": libcachesim.LFU, "sieve": libcachesim.Sieve,
            "s3fifo_fill": libcachesim.S3FIFO, "arc": libcachesim.ARC}
CAPACITIES = (500, 2000, 10000)


def accesses(firn, trace):
    text = subprocess.run([firn, "trace", "convert", trace, "-"], check=True, capture_output=True, text=True).stdout
    return [block for line in text.splitlines() for block in json.loads(line)["hash_ids"]]


def theirs(kind, capacity, stream):
    cache, request = kind(cache_size=capacity), libcachesim.Request()
    request.obj_size = 1
    misses = 0
    for block in stream:
        request.obj_id = block + 1
        misses += not cache.get(request)
    return misses


def ours(firn, trace, policy, capacity):
    command = [firn, "simulate", "--bookkeeping", "--trace", trace, "--policy", policy, "--capacity-blocks",
               str(capacity), "--json", "-"]
    counts = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return counts["blocks"] - counts["access_hits"]


def main():
    firn, wrong = sys.argv[1], 0
    for trace in sys.argv[2:]:
        stream = accesses(firn, trace)
        for name, kind in POLICIES.items():
            for capacity in CAPACITIES:
                a, b = ours(firn, trace, name, capacity), theirs(kind, capacity, stream)
                wrong += a != b
                print(f"{trace.split('/')[-1]:28} {name:12} {capacity:6} blocks: {a} and {b} misses"
                      f"{'' if a == b else '  DIFFERENT'}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
