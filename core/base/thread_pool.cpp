#include "firn/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "core/base/process.h"

namespace firn {
namespace {

using Body = std::function<void(std::size_t, unsigned)>;

// Processors this process may use: a container's cpuset counts, not the machine's total.
unsigned usable_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return static_cast<unsigned>(CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace

struct ThreadPool::State {
  std::mutex turn;  // held by the caller whose loop is running
  std::mutex mutex;
  std::condition_variable start, done;
  // The loop being shared; guarded by mutex except for next, which hands out the indices.
  const Body* body = nullptr;
  std::size_t count = 0;
  std::atomic<std::size_t> next{0};
  std::uint64_t generation = 0;
  unsigned busy = 0;
  bool stop = false;
  std::exception_ptr thrown;  // by a body, the first one; for the caller
  const Birthplace birthplace;
  std::vector<std::jthread> threads;

  // Nothing may leave a thread of the pool, and nothing may leave the caller while others still use the body.
  void work(const Body& loop, std::size_t limit, unsigned worker) {
    try {
      for (std::size_t i = next.fetch_add(1, std::memory_order_relaxed); i < limit;
           i = next.fetch_add(1, std::memory_order_relaxed))
        loop(i, worker);
    } catch (...) {
      std::lock_guard lock(mutex);
      if (!thrown) thrown = std::current_exception();
      next.store(limit, std::memory_order_relaxed);  // nobody begins another
    }
  }

  void run(unsigned worker) {
    std::uint64_t seen = 0;
    std::unique_lock lock(mutex);
    for (;;) {
      start.wait(lock, [&] { return stop || generation != seen; });
      if (stop) return;
      seen = generation;
      const Body* loop = body;
      const std::size_t limit = count;
      lock.unlock();
      work(*loop, limit, worker);
      lock.lock();
      if (--busy == 0) done.notify_one();
    }
  }
};

ThreadPool::ThreadPool(unsigned threads) : state_(std::make_unique<State>()) {
  const unsigned size = threads != 0 ? threads : usable_processors();
  // A limit on threads, or no memory for one: those that were started do the work.
  try {
    for (unsigned worker = 1; worker < size; ++worker)
      state_->threads.emplace_back([state = state_.get(), worker] { state->run(worker); });
  } catch (const std::system_error&) {
  } catch (const std::bad_alloc&) {
  }
}

ThreadPool::~ThreadPool() {
  if (!state_->birthplace.is_here()) {
    // The threads are the parent's. Joining them, or taking down what they wait on, would wait for ever.
    [[maybe_unused]] State* const left = state_.release();
    return;
  }
  {
    std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->start.notify_all();
  state_->threads.clear();  // joins
}

unsigned ThreadPool::size() const { return static_cast<unsigned>(state_->threads.size()) + 1; }

void ThreadPool::parallel_for_worker(std::size_t count, const Body& body) {
  if (!state_->birthplace.is_here()) {  // fork(): there is this thread, and locks that nobody may ever let go of
    for (std::size_t i = 0; i < count; ++i) body(i, 0);
    return;
  }
  std::lock_guard turn(state_->turn);  // before the short cut too: a worker index belongs to one caller at a time
  if (state_->threads.empty() || count <= 1) {
    for (std::size_t i = 0; i < count; ++i) body(i, 0);
    return;
  }
  {
    std::lock_guard lock(state_->mutex);
    state_->body = &body;
    state_->count = count;
    state_->next.store(0, std::memory_order_relaxed);
    state_->busy = static_cast<unsigned>(state_->threads.size());
    ++state_->generation;
  }
  state_->start.notify_all();
  state_->work(body, count, 0);
  std::unique_lock lock(state_->mutex);
  state_->done.wait(lock, [&] { return state_->busy == 0; });
  if (state_->thrown) std::rethrow_exception(std::exchange(state_->thrown, nullptr));
}

void ThreadPool::parallel_for(std::size_t count, const std::function<void(std::size_t)>& body) {
  parallel_for_worker(count, [&body](std::size_t i, unsigned) { body(i); });
}

}  // namespace firn
