// Philox words for arrays of counters.

#include "philox.h"

namespace simclr {

void philox(const std::int64_t *counter, std::size_t n, std::uint32_t key0, std::uint32_t key1, std::int64_t *words) {
    for (std::size_t i = 0; i < n; ++i) {
        Words column;
        for (std::size_t k = 0; k < 4; ++k) column.word[k] = static_cast<std::uint32_t>(counter[k * n + i]);
        const Words drawn = philox(column, key0, key1);
        for (std::size_t k = 0; k < 4; ++k) words[k * n + i] = drawn.word[k];
    }
}

}  // namespace simclr
