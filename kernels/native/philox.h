// Philox4x32-10, the compiled twin of kernels/philox.py: the same words bit for bit.
//
// Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 4.3.

#pragma once

#include <cstddef>
#include <cstdint>

namespace simclr {

struct Words {
    std::uint32_t word[4];
};

// The four words of one counter.
inline Words philox(Words counter, std::uint32_t key0, std::uint32_t key1) {
    constexpr int rounds = 10;
    constexpr std::uint32_t multiplier0 = 0xD2511F53, multiplier1 = 0xCD9E8D57;
    constexpr std::uint32_t weyl0 = 0x9E3779B9, weyl1 = 0xBB67AE85;
    auto [c0, c1, c2, c3] = counter.word;
    for (int round = 0; round < rounds; ++round) {
        const std::uint64_t product0 = std::uint64_t{multiplier0} * c0, product1 = std::uint64_t{multiplier1} * c2;
        c0 = static_cast<std::uint32_t>(product1 >> 32) ^ c1 ^ key0;
        c1 = static_cast<std::uint32_t>(product1);
        c2 = static_cast<std::uint32_t>(product0 >> 32) ^ c3 ^ key1;
        c3 = static_cast<std::uint32_t>(product0);
        key0 += weyl0;
        key1 += weyl1;
    }
    return {{c0, c1, c2, c3}};
}

// The words of n counters, both [4, n] with one word per int64, as torch holds them.
void philox(const std::int64_t *counter, std::size_t n, std::uint32_t key0, std::uint32_t key1, std::int64_t *words);

}  // namespace simclr
