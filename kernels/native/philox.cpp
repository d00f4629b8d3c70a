// Philox4x32-10 for arrays of counters: the compiled twin of kernels/philox.py, the same words bit for bit.
//
// Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 4.3.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>

namespace nb = nanobind;

namespace {

// One word per int64, as torch holds them: numpy views of torch tensors come in, nothing is converted on the way.
using Counter = nb::ndarray<const std::int64_t, nb::numpy, nb::shape<4, -1>, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<std::int64_t, nb::numpy, nb::shape<4, -1>, nb::c_contig, nb::device::cpu>;

constexpr int rounds = 10;
constexpr std::uint32_t multiplier0 = 0xD2511F53, multiplier1 = 0xCD9E8D57;
constexpr std::uint32_t weyl0 = 0x9E3779B9, weyl1 = 0xBB67AE85;

void philox(const Counter &counter, std::uint32_t key0, std::uint32_t key1, const Words &words) {
    const std::size_t n = counter.shape(1);
    if (words.shape(1) != n) throw std::invalid_argument("counter and words must have the same length");
    const std::int64_t *in = counter.data();
    std::int64_t *out = words.data();

    nb::gil_scoped_release release;
    for (std::size_t i = 0; i < n; ++i) {
        auto c0 = static_cast<std::uint32_t>(in[i]), c1 = static_cast<std::uint32_t>(in[n + i]);
        auto c2 = static_cast<std::uint32_t>(in[2 * n + i]), c3 = static_cast<std::uint32_t>(in[3 * n + i]);
        std::uint32_t k0 = key0, k1 = key1;
        for (int round = 0; round < rounds; ++round) {
            const std::uint64_t product0 = std::uint64_t{multiplier0} * c0, product1 = std::uint64_t{multiplier1} * c2;
            c0 = static_cast<std::uint32_t>(product1 >> 32) ^ c1 ^ k0;
            c1 = static_cast<std::uint32_t>(product1);
            c2 = static_cast<std::uint32_t>(product0 >> 32) ^ c3 ^ k1;
            c3 = static_cast<std::uint32_t>(product0);
            k0 += weyl0;
            k1 += weyl1;
        }
        out[i] = c0;
        out[n + i] = c1;
        out[2 * n + i] = c2;
        out[3 * n + i] = c3;
    }
}

}  // namespace

NB_MODULE(_native, module) {
    module.doc() = "Compiled kernels: the same results as their PyTorch twins, without the overhead of many small operations.";
    module.def("philox", &philox, nb::arg("counter"), nb::arg("key_low"), nb::arg("key_high"), nb::arg("words"),
               "Four Philox4x32-10 words per column of counter (int64 [4, n]), written to words (int64 [4, n]).");
}
