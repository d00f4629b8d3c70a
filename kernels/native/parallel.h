// Work shared among the threads of one pool.

#pragma once

#include <cstddef>
#include <functional>

namespace simclr {

// Calls work(begin, end) for pieces that make up [0, count), on at most `threads` threads, the caller's among them, and
// returns when all is done. Pieces are `grain` long where there is more than one thread. Any thread may call it at any
// time, and so may a forked child. Which thread gets which piece is not defined. What work throws is thrown on.
void share(std::size_t count, std::size_t grain, unsigned threads,
           const std::function<void(std::size_t, std::size_t)> &work);

}  // namespace simclr
