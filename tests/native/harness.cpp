// The compiled kernels, fed with random and hostile arguments: run under sanitizers, which see what a wrong index or a
// race does (`make sanitize`). Whether the numbers are right is tested from Python (tests/kernels/augmentation/test_native.py).
//
// Every buffer is exactly as long as it has to be, so that one element beyond it is an error.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "augment.h"
#include "draw.h"
#include "parallel.h"
#include "philox.h"

// A pool that kept a job beyond its call would read a stack frame that is gone.
extern "C" __attribute__((visibility("default"))) const char *__asan_default_options();
extern "C" const char *__asan_default_options() { return "detect_stack_use_after_return=1"; }

namespace {

using Generator = std::mt19937;

void expect(bool holds, const char *what) {
    if (holds) return;
    std::fprintf(stderr, "harness: %s\n", what);
    std::abort();
}

int between(Generator &generator, int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

// Mostly small; now and then large, and then mostly beyond the caches' lines and the vectors' lanes.
int random_side(Generator &generator) {
    return between(generator, 0, 9) == 0 ? between(generator, 60, 131) : between(generator, 1, 40);
}

float hostile(Generator &generator) {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    constexpr float values[] = {std::numeric_limits<float>::quiet_NaN(), infinity, -infinity, 3.4e38f, -3.4e38f,
                                2147483648.0f, -2147483904.0f, 4294967296.0f, 1e20f, -1e20f, 1e-40f, -0.0f, 0.0f, 0.5f,
                                -1.0f, 1.0f, 23.0f, 24.0f, 1e6f, 16777216.0f};
    return values[between(generator, 0, static_cast<int>(std::size(values)) - 1)];
}

struct Case {
    simclr::Format format{};
    simclr::Wanted wanted{true, true, true};
    int batch = 1, views = 1;
    bool sane = true;
    std::vector<std::uint8_t> images;
    std::vector<float> table;
};

Case random_case(Generator &generator) {
    Case c;
    c.batch = between(generator, 1, 4);
    c.views = between(generator, 1, 4);
    c.format.image_height = random_side(generator);
    c.format.image_width = between(generator, 0, 3) ? c.format.image_height : random_side(generator);
    c.format.size = random_side(generator);
    // Any odd width up to 2 · size − 1, the widest that reflection at the edges allows.
    c.format.blur_kernel = 2 * between(generator, 0, c.format.size - 1) + 1;
    for (float &mean : c.format.mean) mean = 0.5f;
    for (float &scale : c.format.inverse_std) scale = 4.0f;
    c.format.bfloat16 = between(generator, 0, 1) == 1;
    c.images.resize(static_cast<std::size_t>(c.batch) * c.format.image_height * c.format.image_width * 3);
    for (std::uint8_t &byte : c.images) byte = static_cast<std::uint8_t>(generator());
    c.sane = between(generator, 0, 1) == 1;
    for (int row = 0; row < c.batch * c.views; ++row) {
        const int height = between(generator, 1, c.format.image_height), width = between(generator, 1, c.format.image_width);
        const int top = between(generator, 0, c.format.image_height - height);
        const int left = between(generator, 0, c.format.image_width - width);
        const auto chance = [&] { return std::uniform_real_distribution<float>(0.0f, 1.0f)(generator); };
        float values[simclr::columns] = {
            float(top), float(left), float(height), float(width), float(between(generator, 0, 1)),
            float(between(generator, 0, 1)), 2 * chance(), 2 * chance(), 2 * chance(), chance() - 0.5f,
            float(between(generator, 0, 23)), float(between(generator, 0, 1)), between(generator, 0, 1) * 2 * chance()};
        if (!c.sane)
            for (float &value : values)
                if (between(generator, 0, 1)) value = hostile(generator);
        c.table.insert(c.table.end(), std::begin(values), std::end(values));
    }
    return c;
}

std::vector<std::uint8_t> run(const Case &c, unsigned threads, const std::string &instructions) {
    const std::size_t rows = c.table.size() / simclr::columns;
    const std::size_t values = rows * 3 * c.format.size * c.format.size;
    std::vector<std::uint8_t> out(values * (c.format.bfloat16 ? 2 : 4), 0xFF);
    simclr::augment(c.format, c.wanted, c.images.data(), c.batch, c.table.data(), rows, threads, instructions, out.data());
    if (c.sane && !c.format.bfloat16)
        for (std::size_t i = 0; i < values; ++i) {
            float value;
            std::memcpy(&value, out.data() + 4 * i, 4);
            expect(std::abs(value) <= 2.0001f, "a view of sane parameters leaves [−2, 2]");
        }
    return out;
}

void views(Generator &generator, int cases) {
    for (int i = 0; i < cases; ++i) {
        const Case c = random_case(generator);
        for (const std::string &instructions : simclr::instruction_sets())
            expect(run(c, 1, instructions) == run(c, 2 + i % 3, instructions), "the number of threads shows");
    }
}

void views_of_several_callers(Generator &generator, int callers) {
    std::vector<Case> cases;
    for (int i = 0; i < callers; ++i) cases.push_back(random_case(generator));
    std::vector<std::thread> threads;
    for (const Case &c : cases)
        threads.emplace_back([&c] {
            const auto alone = run(c, 1, "");
            for (int i = 0; i < 20; ++i) expect(run(c, 4, "") == alone, "another caller shows");
        });
    for (std::thread &thread : threads) thread.join();
}

// Callers that end as soon as they are served: nobody may come late and look at their stack.
void callers_that_are_gone() {
    for (int call = 0; call < 300; ++call)
        std::thread([] { simclr::share(8, 1, 8, [](std::size_t, std::size_t) {}); }).join();
}

// Every piece throws, so that several threads do so at once.
void what_is_thrown_arrives() {
    for (unsigned call = 0; call < 200; ++call) {
        bool caught = false;
        try {
            simclr::share(100, 1, 1 + call % 6, [](std::size_t, std::size_t) {
                std::this_thread::yield();
                throw std::runtime_error("on purpose");
            });
        } catch (const std::runtime_error &) {
            caught = true;
        }
        expect(caught, "what a piece of work throws is lost");
    }
}

void refused(simclr::Format format, int batch, std::size_t rows, const char *what) {
    const std::vector<float> table(rows * simclr::columns);
    try {
        simclr::augment(format, {true, true, true}, nullptr, static_cast<std::size_t>(batch), table.data(), rows, 1, "", nullptr);
    } catch (const std::invalid_argument &) {
        return;
    }
    expect(false, what);
}

void senseless_formats_are_refused() {
    const simclr::Format good{8, 8, 8, 3, {}, {}, false};
    auto changed = [&](auto change) {
        simclr::Format format = good;
        change(format);
        return format;
    };
    refused(changed([](auto &f) { f.size = 0; }), 1, 1, "size 0 is accepted");
    refused(changed([](auto &f) { f.size = -3; }), 1, 1, "a negative size is accepted");
    refused(changed([](auto &f) { f.image_height = 0; }), 1, 1, "an image without rows is accepted");
    refused(changed([](auto &f) { f.image_width = 1 << 21; }), 1, 1, "a giant image is accepted");
    refused(changed([](auto &f) { f.blur_kernel = 2; }), 1, 1, "an even blur kernel is accepted");
    refused(changed([](auto &f) { f.blur_kernel = 17; }), 1, 1, "a blur kernel that reaches too far is accepted");
    refused(changed([](auto &f) { f.blur_kernel = -1; }), 1, 1, "a negative blur kernel is accepted");
    refused(good, 0, 1, "an empty batch is accepted");
    refused(good, 2, 3, "rows without an image are accepted");
}

void tables(Generator &generator, int cases) {
    for (int i = 0; i < cases; ++i) {
        const std::size_t batch = static_cast<std::size_t>(between(generator, 1, 9)), views = 1 + i % 3;
        const int size = between(generator, 1, 300);
        const double narrow = 0.01 * std::pow(10.0, between(generator, 0, 4)), wide = narrow * between(generator, 1, 50);
        const simclr::Distributions spec{
            size, {0.05, 1.0}, {narrow, wide}, {0.5 * std::log(narrow), 0.5 * std::log(wide)},
            0.5, 0.8, 0.4, 0.4, 1.5, 0.5, 0.2, 0.5, {0.1, 2.0}};
        std::vector<std::int64_t> ids(batch);
        for (auto &id : ids) id = (static_cast<std::int64_t>(generator()) << 32) ^ generator();
        std::vector<float> table(batch * views * simclr::table_columns);
        simclr::draw_rows(spec, ~std::uint64_t{0} - generator(), 0xFFFFFFFF, ids.data(), batch, 0, batch * views, table.data());
        for (std::size_t row = 0; row < batch * views; ++row) {
            const float *p = table.data() + row * simclr::table_columns;
            expect(p[0] >= 0 && p[1] >= 0 && p[2] >= 1 && p[3] >= 1 && p[0] + p[2] <= size && p[1] + p[3] <= size,
                   "a drawn crop leaves the image");
        }
        std::vector<std::int64_t> counter(4 * batch), words(4 * batch);
        for (auto &word : counter) word = -static_cast<std::int64_t>(generator());
        simclr::philox(counter.data(), batch, 1, 2, words.data());
    }
}

}  // namespace

int main(int argc, char **argv) {
    const int cases = argc > 1 ? std::atoi(argv[1]) : 2000;
    Generator generator(argc > 2 ? static_cast<unsigned>(std::atoi(argv[2])) : 1);
    views(generator, cases);
    for (int i = 0; i < 1 + cases / 100; ++i) views_of_several_callers(generator, 4);
    callers_that_are_gone();
    what_is_thrown_arrives();
    senseless_formats_are_refused();
    tables(generator, cases);
    std::string names;
    for (const std::string &name : simclr::instruction_sets()) names += " " + name;
    std::printf("harness: %d cases with%s\n", cases, names.c_str());
}
