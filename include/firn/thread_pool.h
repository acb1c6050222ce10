// thread_pool.h: a fixed set of threads that share one loop at a time.
// Threads:  any thread may call parallel_for; calls from different threads take turns. The caller works too, so a pool
// of
//           size 1 has no thread of its own and runs everything inline, in index order.
// Memory:   nothing is allocated after construction.
// Lifetime: outlives every call; the destructor joins.
// Limits:   where the system refuses a thread (RLIMIT_NPROC, a cgroup's pids.max), the pool has fewer; size() says how
//           many. In the child of a fork() the threads are not there: everything runs inline, and the destructor
//           returns.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "firn/export.h"

namespace firn {

class FIRN_API ThreadPool {
 public:
  // threads: 0 takes one per processor this process may run on.
  explicit ThreadPool(unsigned threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  unsigned size() const;  // threads that work on a loop, the caller included
  // Runs body(i) for every i in [0, count), each exactly once, in any order and on any thread; returns when all are
  // done. A body must not call parallel_for of the same pool. What a body throws comes out here, when every thread has
  // left the loop; indices that were not begun by then are left out.
  void parallel_for(std::size_t count, const std::function<void(std::size_t)>& body);
  // The same, and tells the body which worker runs it: [0, size()), for per-thread scratch memory.
  void parallel_for_worker(std::size_t count, const std::function<void(std::size_t index, unsigned worker)>& body);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace firn
