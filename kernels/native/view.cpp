// One view: crop, resize and flip; jitter; gray; blur; normalise. The compiler turns the loops into SIMD.
//
// Compiled once for each instruction set, with INSTRUCTIONS naming it. So nothing here may be shared between the copies:
// a template or inline function of the standard library, compiled for AVX-512, could be the copy that the linker keeps
// for everybody. Hence C headers only, and everything but make_view in an unnamed namespace.
//
// A view is worked on as three planes of floats in [0, 1], small enough for the first caches at the sizes of CIFAR. The
// formulas are those of kernels/augmentation/reference.py and colour.py. Comparisons are written so that NaN in a
// factor comes out as NaN, and not as a number that looks right.

#include "view.h"

#include <math.h>
#include <string.h>

#if defined(_MSC_VER) && !defined(__clang__)
#define RESTRICT __restrict
#else
#define RESTRICT __restrict__
#endif

namespace simclr::INSTRUCTIONS {
namespace {

// torchvision's rgb_to_grayscale (ITU-R 601-2)
constexpr float gray_red = 0.2989f, gray_green = 0.587f, gray_blue = 0.114f;

// Each is one instruction, and keeps NaN: a comparison with NaN is false.
inline float at_least_zero(float x) { return x < 0.0f ? 0.0f : x; }
inline float at_most_one(float x) { return x > 1.0f ? 1.0f : x; }
inline float clamped(float x) { return at_most_one(at_least_zero(x)); }

inline float gray_of(float red, float green, float blue) {
    return red * gray_red + green * gray_green + blue * gray_blue;
}

struct Planes {
    float *channel[3];
    size_t pixels;  // of one plane
};

// ---- Crop, resize, flip ----------------------------------------------------------------------------------------

// How output pixels are made along one axis: pixel i is the sum over k of weight[k · size + i] · source[first[i] + k].
// Taps that would lie behind the crop have weight 0.
struct Taps {
    int count;
    int32_t *first;
    float *weight;
};

// Enlarging, or the same size: the two nearest pixels.
void two_taps(int length, int size, bool mirrored, float gain, int32_t *RESTRICT first, float *RESTRICT weight) {
    const double scale = (double)length / size;
    const double start = mirrored ? size - 1 : 0, step = mirrored ? -1 : 1;
    for (int i = 0; i < size; ++i) {
        const double centre = (start + step * i + 0.5) * scale - 0.5;
        const int below = (int)(centre + 1.0) - 1;  // floor, for what is above −1
        const bool outside = below < 0 || below >= length - 1;
        const double second = outside ? 0.0 : centre - below;
        first[i] = below < 0 ? 0 : below;
        weight[i] = (float)((1.0 - second) * gain);
        weight[size + i] = (float)(second * gain);
    }
}

// Shrinking: a triangle as wide as two output pixels, cut at the crop's edges and normalised. This is PyTorch's
// interpolate(mode="bilinear", antialias=True).
void antialiased_taps(int length, int size, bool mirrored, float gain, const Taps &taps) {
    const double scale = (double)length / size;
    for (int i = 0; i < size; ++i) {
        const double centre = ((mirrored ? size - 1 - i : i) + 0.5) * scale;
        const double edge = floor(centre - scale + 0.5);
        const int first = edge < 0 ? 0 : (int)edge;
        double sum = 0;
        for (int k = 0; k < taps.count; ++k) {
            const double distance = fabs(first + k + 0.5 - centre) / scale;
            const double weight = first + k < length && distance < 1 ? 1 - distance : 0;
            taps.weight[(size_t)k * size + i] = (float)weight;
            sum += weight;
        }
        taps.first[i] = first;
        for (int k = 0; k < taps.count; ++k) taps.weight[(size_t)k * size + i] *= (float)(gain / sum);
    }
}

Taps take_taps(WorkingMemory &memory, int length, int size) {
    const int count = tap_count(length, size);
    auto *first = (int32_t *)memory.take(size);
    return {count, first, memory.take((size_t)count * size)};
}

void make_taps(int length, int size, bool mirrored, float gain, const Taps &taps) {
    if (length <= size)
        two_taps(length, size, mirrored, gain, taps.first, taps.weight);
    else
        antialiased_taps(length, size, mirrored, gain, taps);
}

void row_from_two(const uint8_t *RESTRICT a, const uint8_t *RESTRICT b, float weight_a, float weight_b, int count,
                  float *RESTRICT row) {
    for (int x = 0; x < count; ++x) row[x] = weight_a * (float)a[x] + weight_b * (float)b[x];
}

void add_to_row(const uint8_t *RESTRICT a, float weight, int count, float *RESTRICT row) {
    for (int x = 0; x < count; ++x) row[x] += weight * (float)a[x];
}

void spread_two(const float *RESTRICT row, const int32_t *RESTRICT first, const float *RESTRICT weight, int size,
                float *RESTRICT red, float *RESTRICT green, float *RESTRICT blue) {
    for (int i = 0; i < size; ++i) {
        const float *pixel = row + 3 * first[i];
        red[i] = weight[i] * pixel[0] + weight[size + i] * pixel[3];
        green[i] = weight[i] * pixel[1] + weight[size + i] * pixel[4];
        blue[i] = weight[i] * pixel[2] + weight[size + i] * pixel[5];
    }
}

void spread_more(const float *RESTRICT row, const int32_t *RESTRICT first, const float *RESTRICT weight, int size,
                 float *RESTRICT red, float *RESTRICT green, float *RESTRICT blue) {
    for (int i = 0; i < size; ++i) {
        const float *pixel = row + 3 * first[i];
        red[i] += weight[i] * pixel[0];
        green[i] += weight[i] * pixel[1];
        blue[i] += weight[i] * pixel[2];
    }
}

// Row by row: down into one row of interleaved colours as wide as the crop, then across into the planes.
void resized_crop(const Format &format, const View &view, const uint8_t *image, const Taps &down, const Taps &across,
                  float *row, const Planes &planes) {
    const int size = format.size, values = 3 * view.width;
    const size_t row_bytes = 3 * (size_t)format.image_width;
    const uint8_t *crop = image + view.top * row_bytes + 3 * (size_t)view.left;
    make_taps(view.height, size, false, 1.0f / 255.0f, down);
    make_taps(view.width, size, view.mirrored, 1.0f, across);
    // Taps behind the crop have weight 0, but what they read must be a number.
    memset(row + values, 0, 3 * (size_t)across.count * sizeof(float));
    for (int i = 0; i < size; ++i) {
        const int first = down.first[i], left = view.height - first;
        const uint8_t *source = crop + first * row_bytes;
        row_from_two(source, left > 1 ? source + row_bytes : source, down.weight[i], down.weight[size + i], values, row);
        for (int k = 2; k < down.count && k < left; ++k)
            add_to_row(source + k * row_bytes, down.weight[(size_t)k * size + i], values, row);

        const size_t begin = (size_t)i * size;
        float *red = planes.channel[0] + begin, *green = planes.channel[1] + begin, *blue = planes.channel[2] + begin;
        spread_two(row, across.first, across.weight, size, red, green, blue);
        for (int k = 2; k < across.count; ++k)
            spread_more(row + 3 * k, across.first, across.weight + (size_t)k * size, size, red, green, blue);
    }
}

// ---- Colour ----------------------------------------------------------------------------------------------------

void brighten(float *RESTRICT x, size_t n, float factor) {
    for (size_t i = 0; i < n; ++i) x[i] = clamped(factor * x[i]);
}

void brightness(const Planes &planes, float factor) {
    for (float *plane : planes.channel) brighten(plane, planes.pixels, factor);
}

// In lanes of its own, so that the order of the additions is fixed and the compiler need not be allowed to change it.
float mean(const float *RESTRICT x, size_t n) {
    constexpr size_t lanes = 32, block = 64 * lanes;
    double total = 0;
    for (size_t begin = 0; begin < n; begin += block) {
        const size_t end = begin + block < n ? begin + block : n;
        float sum[lanes] = {};
        size_t i = begin;
        for (; i + lanes <= end; i += lanes)
            for (size_t lane = 0; lane < lanes; ++lane) sum[lane] += x[i + lane];
        for (; i < end; ++i) total += x[i];
        for (float lane : sum) total += lane;
    }
    return (float)(total / (double)n);
}

void toward(float *RESTRICT x, size_t n, float factor, float offset) {
    for (size_t i = 0; i < n; ++i) x[i] = clamped(factor * x[i] + offset);
}

void contrast(const Planes &planes, float factor) {
    // The mean of the gray is the gray of the means.
    const float pivot = gray_of(mean(planes.channel[0], planes.pixels), mean(planes.channel[1], planes.pixels),
                                mean(planes.channel[2], planes.pixels));
    for (float *plane : planes.channel) toward(plane, planes.pixels, factor, (1.0f - factor) * pivot);
}

void saturate(float *RESTRICT red, float *RESTRICT green, float *RESTRICT blue, size_t n, float factor) {
    for (size_t i = 0; i < n; ++i) {
        const float r = red[i], g = green[i], b = blue[i];
        const float gray = (1.0f - factor) * gray_of(r, g, b);
        red[i] = clamped(factor * r + gray);
        green[i] = clamped(factor * g + gray);
        blue[i] = clamped(factor * b + gray);
    }
}

// colour.hue_: sort the channels; the hue follows from the sorted values and the swaps that sorting took. Every channel
// is then the smallest plus the chroma times a trapezoid of the hue.
void rotate_hue(float *RESTRICT red, float *RESTRICT green, float *RESTRICT blue, size_t n, float turn) {
    const float sixths = 6.0f * turn;
    for (size_t i = 0; i < n; ++i) {
        const float r = red[i], g = green[i], b = blue[i];
        const bool swap_low = g < b;
        const float upper = swap_low ? b : g, lower = swap_low ? g : b;
        const bool swap_high = r < upper;
        const float high = swap_high ? upper : r, middle = swap_high ? r : upper;
        const float low = middle < lower ? middle : lower;
        const float chroma = high - low;
        const float sector_low = swap_high ? 4.0f : -6.0f, sector_high = swap_high ? -2.0f : 0.0f;
        const float sector = swap_low ? sector_low : sector_high;
        // Without chroma the numerator is 0 as well, and so is the hue, which then has no effect.
        const float place = (middle - lower) / (chroma < 1e-30f ? 1e-30f : chroma);
        float hue = fabsf(place + sector) + sixths;
        hue -= 6.0f * floorf(hue * (1.0f / 6.0f));
        red[i] = low + chroma * clamped(fabsf(hue - 3.0f) - 1.0f);
        green[i] = low + chroma * clamped(2.0f - fabsf(hue - 2.0f));
        blue[i] = low + chroma * clamped(2.0f - fabsf(hue - 4.0f));
    }
}

void jitter(const View &view, const Planes &planes) {
    if (view.jitter[0] == no_jitter) return;
    for (int operation : view.jitter) {
        const float factor = view.factors[operation];
        switch (operation) {
            case 0: brightness(planes, factor); break;
            case 1: contrast(planes, factor); break;
            case 2: saturate(planes.channel[0], planes.channel[1], planes.channel[2], planes.pixels, factor); break;
            default: rotate_hue(planes.channel[0], planes.channel[1], planes.channel[2], planes.pixels, factor);
        }
    }
}

void drop_colour(float *RESTRICT red, float *RESTRICT green, float *RESTRICT blue, size_t n) {
    for (size_t i = 0; i < n; ++i) red[i] = green[i] = blue[i] = gray_of(red[i], green[i], blue[i]);
}

// ---- Blur ------------------------------------------------------------------------------------------------------

// torchvision's Gaussian, [kernel]: the normal density at whole pixels, normalised.
void gaussian(float sigma, int kernel, float *weight) {
    const double narrowest = 1e-3, width = sigma < narrowest ? narrowest : sigma;
    double sum = 0;
    for (int k = 0; k < kernel; ++k) {
        const double offset = (k - kernel / 2) / width;
        sum += exp(-0.5 * offset * offset);
    }
    for (int k = 0; k < kernel; ++k) {
        const double offset = (k - kernel / 2) / width;
        weight[k] = (float)(exp(-0.5 * offset * offset) / sum);
    }
}

// −1 is 1, size is size − 2. One reflection is enough: the kernel reaches less far than the image.
inline int reflected(int i, int size) {
    const int j = i < 0 ? -i : i;
    return j < size ? j : 2 * (size - 1) - j;
}

void scaled(const float *RESTRICT x, float weight, int n, float *RESTRICT out) {
    for (int i = 0; i < n; ++i) out[i] = weight * x[i];
}

void add_scaled(const float *RESTRICT x, float weight, int n, float *RESTRICT out) {
    for (int i = 0; i < n; ++i) out[i] += weight * x[i];
}

// Down from a copy of the plane into one row with room for reflected edges, then across, back into the plane.
void blur_plane(float *plane, int size, int kernel, const float *weight, float *copy, float *row) {
    const int reach = kernel / 2;
    memcpy(copy, plane, (size_t)size * size * sizeof(float));
    float *middle = row + reach;
    for (int i = 0; i < size; ++i) {
        for (int k = 0; k < kernel; ++k) {
            const float *source = copy + (size_t)reflected(i + k - reach, size) * size;
            if (k == 0)
                scaled(source, weight[k], size, middle);
            else
                add_scaled(source, weight[k], size, middle);
        }
        for (int edge = 1; edge <= reach; ++edge) {
            middle[-edge] = middle[edge];
            middle[size - 1 + edge] = middle[size - 1 - edge];
        }
        float *out = plane + (size_t)i * size;
        for (int k = 0; k < kernel; ++k) {
            if (k == 0)
                scaled(row, weight[k], size, out);
            else
                add_scaled(row + k, weight[k], size, out);
        }
    }
}

// ---- Normalise and store ---------------------------------------------------------------------------------------

void store_float32(const float *RESTRICT red, const float *RESTRICT green, const float *RESTRICT blue, size_t n,
                   const float *mean, const float *inverse_std, float *RESTRICT out) {
    const float mean_red = mean[0], mean_green = mean[1], mean_blue = mean[2];
    const float scale_red = inverse_std[0], scale_green = inverse_std[1], scale_blue = inverse_std[2];
    for (size_t i = 0; i < n; ++i) {
        out[3 * i] = (red[i] - mean_red) * scale_red;
        out[3 * i + 1] = (green[i] - mean_green) * scale_green;
        out[3 * i + 2] = (blue[i] - mean_blue) * scale_blue;
    }
}

// The nearest bfloat16, ties to even, NaN to NaN.
inline uint16_t bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)(x == x ? rounded : 0x7FC0);
}

void store_bfloat16(const float *RESTRICT red, const float *RESTRICT green, const float *RESTRICT blue, size_t n,
                    const float *mean, const float *inverse_std, uint16_t *RESTRICT out) {
    const float mean_red = mean[0], mean_green = mean[1], mean_blue = mean[2];
    const float scale_red = inverse_std[0], scale_green = inverse_std[1], scale_blue = inverse_std[2];
    for (size_t i = 0; i < n; ++i) {
        out[3 * i] = bfloat16((red[i] - mean_red) * scale_red);
        out[3 * i + 1] = bfloat16((green[i] - mean_green) * scale_green);
        out[3 * i + 2] = bfloat16((blue[i] - mean_blue) * scale_blue);
    }
}

}  // namespace

void make_view(const Format &format, const View &view, const uint8_t *image, float *floats, void *out) {
    const int size = format.size;
    const size_t pixels = (size_t)size * size;
    WorkingMemory memory{floats};
    Planes planes{{memory.take(pixels), memory.take(pixels), memory.take(pixels)}, pixels};
    {
        WorkingMemory scratch = memory;
        const Taps down = take_taps(scratch, view.height, size), across = take_taps(scratch, view.width, size);
        float *row = scratch.take(row_floats(view.width, size));
        resized_crop(format, view, image, down, across, row, planes);
    }
    jitter(view, planes);
    auto [red, green, blue] = planes.channel;
    if (view.gray) drop_colour(red, green, blue, pixels);
    if (view.sigma > 0) {
        WorkingMemory scratch = memory;
        float *weight = scratch.take(format.blur_kernel), *copy = scratch.take(pixels);
        float *row = scratch.take(blur_row_floats(format));
        gaussian(view.sigma, format.blur_kernel, weight);
        for (float *plane : planes.channel) blur_plane(plane, size, format.blur_kernel, weight, copy, row);
    }
    if (format.bfloat16)
        store_bfloat16(red, green, blue, pixels, format.mean, format.inverse_std, (uint16_t *)out);
    else
        store_float32(red, green, blue, pixels, format.mean, format.inverse_std, (float *)out);
}

}  // namespace simclr::INSTRUCTIONS
