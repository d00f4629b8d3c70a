// Making one view. view.cpp is compiled once for each instruction set, and augment.cpp picks one at run time.

#pragma once

#include <stddef.h>
#include <stdint.h>

namespace simclr {

// What all views of a call have in common.
struct Format {
    int image_height, image_width;  // of the stored images, uint8 [height, width, 3]
    int size;                       // side of the views
    int blur_kernel;                // odd; at most 2 · size − 1
    float mean[3], inverse_std[3];
    bool bfloat16;                  // or else float32
};

constexpr int operations = 4;  // of the jitter: brightness, contrast, saturation, hue
constexpr int no_jitter = -1;

// What happens to one view: a checked row of the table. The crop lies within the image.
struct View {
    int top, left, height, width;
    bool mirrored;
    int jitter[operations];  // which operation comes first, second, third, last; jitter[0] = no_jitter for none
    float factors[operations];
    bool gray;
    float sigma;  // 0: not blurred
};

// Unnamed, so that each instruction set has a copy of its own; see view.cpp.
namespace {

// Hands out working memory, each part on cache lines of its own.
struct WorkingMemory {
    float *next;
    static size_t whole_lines(size_t floats) { return (floats + 15) / 16 * 16; }
    float *take(size_t floats) {
        float *taken = next;
        next += whole_lines(floats);
        return taken;
    }
};

// How many pixels of a crop `length` long make one of `size` output pixels, at most.
inline int tap_count(int length, int size) {
    if (length <= size) return 2;
    // An open interval 2 · length / size wide holds so many whole numbers; one more for the rounding of its ends.
    const int most = (int)((2 * (int64_t)length + size - 1) / size) + 1;
    return most < length ? most : length;
}

// A row of a crop, and room for taps that lie behind it.
inline size_t row_floats(int width, int size) { return 3 * ((size_t)width + tap_count(width, size)); }

// A row of a view, and room for its reflected edges.
inline size_t blur_row_floats(const Format &format) { return (size_t)format.size + format.blur_kernel; }

}  // namespace

// image: uint8 [height, width, 3]; memory: as much as augment.cpp reckons; out: [size, size, 3].
using MakeView = void (*)(const Format &format, const View &view, const uint8_t *image, float *memory, void *out);

#define SIMCLR_DECLARE(instructions) \
    namespace instructions {         \
    void make_view(const Format &, const View &, const uint8_t *, float *, void *); \
    }
SIMCLR_DECLARE(baseline)
SIMCLR_DECLARE(avx2)
SIMCLR_DECLARE(avx512)
#undef SIMCLR_DECLARE

}  // namespace simclr
