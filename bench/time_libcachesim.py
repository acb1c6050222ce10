#!/usr/bin/env python3
"""usage: time_libcachesim.py STREAM.bin BLOCKS: seconds that libCacheSim's own loop takes for LRU, and its miss ratio.

The stream is in libCacheSim's oracleGeneral format. The package is GPL: a yardstick in a process of its own, nothing of
it is ours.
"""
import sys
import time

import libcachesim

cache = libcachesim.LRU(cache_size=int(sys.argv[2]))
reader = libcachesim.TraceReader(sys.argv[1], libcachesim.TraceType.ORACLE_GENERAL_TRACE)
start = time.perf_counter()
ratio = cache.process_trace(reader)[0]
print(time.perf_counter() - start, ratio)
