// The Python module simclr_engine.kernels._native: arrays in, arrays out. Python allocates, C++ fills, without the GIL.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "augment.h"
#include "draw.h"
#include "philox.h"

namespace nb = nanobind;

namespace {

// numpy views of torch tensors come in, nothing is converted on the way; numpy has no bfloat16: it comes as int16.
template <class T, class Shape>
using Array = nb::ndarray<T, nb::numpy, Shape, nb::c_contig, nb::device::cpu>;
using Range = std::pair<double, double>;

void require(bool holds, const char *message) {
    if (!holds) throw std::invalid_argument(message);
}

void philox(const Array<const std::int64_t, nb::shape<4, -1>> &counter, std::uint32_t key_low, std::uint32_t key_high,
            const Array<std::int64_t, nb::shape<4, -1>> &words) {
    require(words.shape(1) == counter.shape(1), "counter and words must have the same length");
    nb::gil_scoped_release release;
    simclr::philox(counter.data(), counter.shape(1), key_low, key_high, words.data());
}

simclr::Interval interval(Range range) { return {range.first, range.second}; }

void draw(const Array<const std::int64_t, nb::shape<-1>> &sample_ids, std::uint64_t seed, std::uint32_t epoch,
          std::int64_t image_size, Range crop_scale, Range crop_ratio, Range half_log_ratio, double flip, double jitter,
          double brightness, double contrast, double saturation, double hue, double gray, double blur, Range blur_sigma,
          const Array<float, nb::shape<-1, simclr::table_columns>> &table) {
    const std::size_t batch = sample_ids.shape(0), rows = table.shape(0);
    require(batch > 0 ? rows % batch == 0 : rows == 0, "the table needs a row for each view of each sample");
    require(image_size >= 1 && image_size <= 1 << 20, "images need a side of 1 to 2**20 pixels");
    const simclr::Distributions spec{image_size, interval(crop_scale), interval(crop_ratio), interval(half_log_ratio),
                                     flip, jitter, brightness, contrast, saturation, hue, gray, blur,
                                     interval(blur_sigma)};
    nb::gil_scoped_release release;
    simclr::draw_rows(spec, seed, epoch, sample_ids.data(), batch, 0, rows, table.data());
}

using Images = Array<const std::uint8_t, nb::shape<-1, -1, -1, 3>>;
using Table = Array<const float, nb::shape<-1, simclr::columns>>;
using Colour = std::tuple<float, float, float>;

template <class T>
void augment(const Images &images, const Table &table, const Colour &mean, const Colour &inverse_std, bool jitter,
             bool gray, bool blur, int blur_kernel, unsigned threads, const std::string &instructions,
             const Array<T, nb::shape<-1, -1, -1, 3>> &views) {
    constexpr std::size_t largest = 1 << 20;
    require(images.shape(1) <= largest && images.shape(2) <= largest && views.shape(1) <= largest,
            "images and views need a side of 1 to 2**20 pixels");
    require(views.shape(1) == views.shape(2), "views must be square");
    require(views.shape(0) == table.shape(0), "there must be as many views as rows of the table");
    const auto [mean_red, mean_green, mean_blue] = mean;
    const auto [scale_red, scale_green, scale_blue] = inverse_std;
    const simclr::Format format{static_cast<int>(images.shape(1)),
                                static_cast<int>(images.shape(2)),
                                static_cast<int>(views.shape(1)),
                                blur_kernel,
                                {mean_red, mean_green, mean_blue},
                                {scale_red, scale_green, scale_blue},
                                sizeof(T) == 2};
    nb::gil_scoped_release release;
    simclr::augment(format, {jitter, gray, blur}, images.data(), images.shape(0), table.data(), table.shape(0), threads,
                    instructions, views.data());
}

template <class T>
void define_augment(nb::module_ &module, const char *doc) {
    module.def("augment", &augment<T>, nb::arg("images").noconvert(), nb::arg("table").noconvert(), nb::arg("mean"),
               nb::arg("inverse_std"), nb::arg("jitter"), nb::arg("gray"), nb::arg("blur"), nb::arg("blur_kernel"),
               nb::arg("threads"), nb::arg("instructions"), nb::arg("views").noconvert(), doc);
}

}  // namespace

NB_MODULE(_native, module) {
    module.doc() = "Compiled kernels: the same results as their PyTorch twins, without the overhead of many small operations.";
    module.def("philox", &philox, nb::arg("counter"), nb::arg("key_low"), nb::arg("key_high"), nb::arg("words"),
               "Four Philox4x32-10 words per column of counter (int64 [4, n]), written to words (int64 [4, n]).");
    module.def("draw", &draw, nb::arg("sample_ids").noconvert(), nb::arg("seed"), nb::arg("epoch"),
               nb::arg("image_size"), nb::arg("crop_scale"), nb::arg("crop_ratio"), nb::arg("half_log_ratio"),
               nb::arg("flip"), nb::arg("jitter"), nb::arg("brightness"), nb::arg("contrast"), nb::arg("saturation"),
               nb::arg("hue"), nb::arg("gray"), nb::arg("blur"), nb::arg("blur_sigma"), nb::arg("table").noconvert(),
               "View parameters of the samples (int64 [B]), written to table (float32 [V·B, 13]).");
    define_augment<float>(module, "Views of images (uint8 [B, H, W, 3]), written to views (float32 [V·B, S, S, 3]).");
    define_augment<std::int16_t>(module, "The same in bfloat16, whose bits are written to int16.");
    module.def("instruction_sets", &simclr::instruction_sets,
               "What augment's `instructions` may be on this machine, the best first; it takes that one if empty.");
}
