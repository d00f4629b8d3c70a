// Drawing the table of view parameters: the compiled twin of kernels/augmentation/params.py.

#pragma once

#include <cstddef>
#include <cstdint>

namespace simclr {

constexpr std::size_t table_columns = 13;

struct Interval {
    double low, high;
};

// AugmentSpec's fields, and the logarithms of its ratios, which Python computes once for every backend.
struct Distributions {
    std::int64_t image_size;
    Interval crop_scale, crop_ratio, half_log_ratio;
    double flip, jitter, brightness, contrast, saturation, hue, gray, blur;
    Interval blur_sigma;
};

// Rows [first, last) of float32 [views · batch, 13]; row v · batch + i is view v of sample_ids[i].
void draw_rows(const Distributions &spec, std::uint64_t seed, std::uint32_t epoch, const std::int64_t *sample_ids,
               std::size_t batch, std::size_t first, std::size_t last, float *table);

}  // namespace simclr
