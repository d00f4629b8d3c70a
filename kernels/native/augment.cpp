// Checks the arguments, reads the table, and shares the views among the threads.

#include "augment.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>

#include "parallel.h"

namespace simclr {
namespace {

struct InstructionSet {
    const char *name;
    MakeView make_view;
    bool (*runs_here)();
};

const InstructionSet sets[] = {
#ifdef SIMCLR_X86
    {"avx512", avx512::make_view,
     [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("fma");
     }},
    {"avx2", avx2::make_view, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {"baseline", baseline::make_view, [] { return true; }},
};

MakeView pick(const std::string &instructions) {
    for (const InstructionSet &set : sets)
        if ((instructions.empty() || instructions == set.name) && set.runs_here()) return set.make_view;
    throw std::invalid_argument("this build or this machine does not have the instruction set " + instructions);
}

// Whole pixels in [low, high]; NaN is low.
int whole(float value, int low, int high) {
    if (!(value > static_cast<float>(low))) return low;
    return value < static_cast<float>(high) ? static_cast<int>(value) : high;
}

// Row `order` of colour.JITTER_ORDERS, which is itertools.permutations(range(4)): in lexicographic order.
void read_order(int order, int *jitter) {
    int left[operations] = {0, 1, 2, 3}, orders = 24;
    for (int step = 0; step < operations; ++step) {
        const int remaining = operations - step;
        orders /= remaining;  // of those that begin alike
        const int chosen = order / orders % remaining;
        jitter[step] = left[chosen];
        std::copy(left + chosen + 1, left + remaining, left + chosen);
    }
}

View read_row(const float *row, const Format &format, const Wanted &wanted) {
    View view{};
    view.height = whole(row[column_height], 1, format.image_height);
    view.width = whole(row[column_width], 1, format.image_width);
    view.top = whole(row[column_y], 0, format.image_height - view.height);
    view.left = whole(row[column_x], 0, format.image_width - view.width);
    view.mirrored = row[column_flip] > 0;
    view.jitter[0] = no_jitter;
    if (wanted.jitter && row[column_jitter_on] > 0) read_order(whole(row[column_order], 0, 23), view.jitter);
    std::copy(row + column_brightness, row + column_order, view.factors);
    view.gray = wanted.gray && row[column_gray] > 0;
    view.sigma = wanted.blur && row[column_sigma] > 0 ? row[column_sigma] : 0;
    return view;
}

void check(const Format &format, const Wanted &wanted, std::size_t batch, std::size_t rows) {
    // Generous, and small enough that 32 bits hold every place within a row.
    constexpr int largest = 1 << 20;
    for (const int side : {format.image_height, format.image_width, format.size})
        if (side < 1 || side > largest) throw std::invalid_argument("images and views need a side of 1 to 2**20 pixels");
    if (batch == 0 || rows % batch != 0) throw std::invalid_argument("the table needs a row for each view of each image");
    if (wanted.blur && (format.blur_kernel < 1 || format.blur_kernel % 2 == 0 || format.blur_kernel / 2 >= format.size))
        throw std::invalid_argument("the blur kernel must be odd and reach less far than the view");
}

// What make_view takes, at most: three planes, and then whatever the crop or the blur needs.
std::size_t working_floats(const Format &format, const Wanted &wanted) {
    const auto lines = WorkingMemory::whole_lines;
    const auto size = static_cast<std::size_t>(format.size);
    const auto taps = [&](int length) { return lines(size) + lines(size * tap_count(length, format.size)); };
    const std::size_t crop = taps(format.image_height) + taps(format.image_width) +
                             lines(row_floats(format.image_width, format.size));
    const std::size_t blur =
        wanted.blur ? lines(format.blur_kernel) + lines(size * size) + lines(blur_row_floats(format)) : 0;
    return 3 * lines(size * size) + std::max(crop, blur);
}

// Kept by every thread that makes views, from call to call: a view is made in less time than fresh pages take.
float *thread_memory(std::size_t floats) {
    constexpr std::align_val_t cache_line{64};
    struct Release {
        void operator()(float *memory) const { ::operator delete(memory, cache_line); }
    };
    thread_local std::unique_ptr<float, Release> memory;
    thread_local std::size_t held = 0;
    if (held < floats) {
        held = 0;
        memory.reset();
        memory.reset(static_cast<float *>(::operator new(floats * sizeof(float), cache_line)));
        held = floats;
    }
    return memory.get();
}

}  // namespace

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const InstructionSet &set : sets)
        if (set.runs_here()) names.emplace_back(set.name);
    return names;
}

void augment(const Format &format, const Wanted &wanted, const std::uint8_t *images, std::size_t batch,
             const float *table, std::size_t rows, unsigned threads, const std::string &instructions, void *out) {
    check(format, wanted, batch, rows);
    const MakeView make_view = pick(instructions);
    const std::size_t floats = working_floats(format, wanted);
    const auto pixels = static_cast<std::size_t>(format.size) * static_cast<std::size_t>(format.size);
    const std::size_t image_bytes = 3 * static_cast<std::size_t>(format.image_height) * format.image_width;
    const std::size_t view_bytes = 3 * pixels * (format.bfloat16 ? 2 : 4);
    // Pieces of some 10 to 100 microseconds: long beside waking a thread, short beside waiting for the last one.
    const std::size_t grain = std::max<std::size_t>(1, 8192 / pixels);
    share(rows, grain, threads, [&](std::size_t first, std::size_t last) {
        float *memory = thread_memory(floats);
        for (std::size_t row = first; row < last; ++row)
            make_view(format, read_row(table + row * columns, format, wanted), images + row % batch * image_bytes, memory,
                      static_cast<unsigned char *>(out) + row * view_bytes);
    });
}

}  // namespace simclr
