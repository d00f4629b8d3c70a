// Drawing, one view at a time. Every number must come out as params.py draws it, to the last bit: float64, the same
// operations in the same order, none of them contracted into a fused multiply-add (CMakeLists.txt sees to that).

#include "draw.h"

#include <algorithm>
#include <cmath>

#include "philox.h"

namespace simclr {
namespace {

constexpr std::uint32_t blocks_per_view = 16;
constexpr int attempts = 10, attempts_per_block = 2, first_attempt_block = 3;

double uniform(std::uint32_t word) { return static_cast<double>(word >> 8) * 0x1p-24; }

std::int64_t whole_below(std::uint32_t word, std::int64_t count) {
    return (static_cast<std::int64_t>(word >> 8) * count) >> 24;
}

double between(double chance, Interval range) { return chance * (range.high - range.low) + range.low; }

Interval factors(double strength) { return {std::max(0.0, 1.0 - strength), 1.0 + strength}; }

// e**x as params._exp: library exponentials differ in the last bit.
double exponential(double x) {
    const double y = x * 0.125;
    double term = 1, total = 1;
    for (int n = 1; n <= 10; ++n) {
        term = term * y * (1.0 / n);
        total = total + term;
    }
    for (int i = 0; i < 3; ++i) total = total * total;
    return total;
}

struct Crop {
    std::int64_t y, x, height, width;
};

// torchvision's RandomResizedCrop.get_params: the first of ten attempts that fits, else the fallback. The words of the
// attempts that are not reached are never drawn.
template <class Block>
Crop draw_crop(const Distributions &spec, std::uint32_t word_y, std::uint32_t word_x, Block block) {
    const std::int64_t size = spec.image_size;
    const auto limit = static_cast<double>(size), area = static_cast<double>(size * size);
    Words words{};
    for (int attempt = 0; attempt < attempts; ++attempt) {
        const int place = attempt % attempts_per_block;
        if (place == 0) words = block(first_attempt_block + attempt / attempts_per_block);
        const double side = std::sqrt(between(uniform(words.word[2 * place]), spec.crop_scale) * area);
        const double stretch = exponential(between(uniform(words.word[2 * place + 1]), spec.half_log_ratio));
        const double width = std::nearbyint(side * stretch), height = std::nearbyint(side / stretch);
        if (width > 0 && width <= limit && height > 0 && height <= limit) {
            const auto w = static_cast<std::int64_t>(width), h = static_cast<std::int64_t>(height);
            return {whole_below(word_y, size - h + 1), whole_below(word_x, size - w + 1), h, w};
        }
    }
    const auto [narrowest, widest] = spec.crop_ratio;
    const double w = widest < 1 ? std::max(1.0, std::nearbyint(limit * widest)) : limit;
    const double h = narrowest > 1 ? std::max(1.0, std::nearbyint(limit / narrowest)) : limit;
    const auto width = static_cast<std::int64_t>(w), height = static_cast<std::int64_t>(h);
    return {(size - height) / 2, (size - width) / 2, height, width};
}

void draw_row(const Distributions &spec, std::uint64_t seed, std::uint32_t epoch, std::int64_t sample_id,
              std::uint32_t view, float *row) {
    const auto id = static_cast<std::uint64_t>(sample_id);
    const auto block = [&](int number) {
        const auto last = static_cast<std::uint32_t>(view * blocks_per_view + static_cast<std::uint32_t>(number));
        return philox({{static_cast<std::uint32_t>(id), static_cast<std::uint32_t>(id >> 32), epoch, last}},
                      static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32));
    };
    const auto [y, x, flip, jitter] = block(0).word;
    const auto [brightness, contrast, saturation, hue] = block(1).word;
    const auto [order, gray, blur, sigma] = block(2).word;
    const Crop crop = draw_crop(spec, y, x, block);
    const double values[table_columns] = {
        static_cast<double>(crop.y),
        static_cast<double>(crop.x),
        static_cast<double>(crop.height),
        static_cast<double>(crop.width),
        uniform(flip) < spec.flip ? 1.0 : 0.0,
        uniform(jitter) < spec.jitter ? 1.0 : 0.0,
        between(uniform(brightness), factors(spec.brightness)),
        between(uniform(contrast), factors(spec.contrast)),
        between(uniform(saturation), factors(spec.saturation)),
        between(uniform(hue), {-spec.hue, spec.hue}),
        static_cast<double>(whole_below(order, 24)),
        uniform(gray) < spec.gray ? 1.0 : 0.0,
        uniform(blur) < spec.blur ? between(uniform(sigma), spec.blur_sigma) : 0.0,
    };
    for (std::size_t column = 0; column < table_columns; ++column) row[column] = static_cast<float>(values[column]);
}

}  // namespace

void draw_rows(const Distributions &spec, std::uint64_t seed, std::uint32_t epoch, const std::int64_t *sample_ids,
               std::size_t batch, std::size_t first, std::size_t last, float *table) {
    for (std::size_t row = first; row < last; ++row)
        draw_row(spec, seed, epoch, sample_ids[row % batch], static_cast<std::uint32_t>(row / batch),
                 table + row * table_columns);
}

}  // namespace simclr
