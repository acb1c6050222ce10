// process.h: what happens to the process as a whole: fork(). A child has the memory of its parent and one thread, the
// one that forked: the threads of a pool or a mover are not there, and a lock that one of them held is held for ever.
// So whatever has threads or locks remembers in which process it was made, and does without them in a child.
#pragma once

#include <atomic>

namespace firn {

// How often this process is the child of a fork() since the library was first used; counted by pthread_atfork().
inline std::atomic<unsigned> fork_count{0};

// The process in which something is made. is_here(): one load and one comparison.
class Birthplace {
 public:
  Birthplace();
  bool is_here() const { return forks_ == fork_count.load(std::memory_order_relaxed); }

 private:
  unsigned forks_;
};

}  // namespace firn
