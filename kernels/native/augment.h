// Views of a batch of images: the compiled twin of kernels/augmentation/reference.py.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "view.h"

namespace simclr {

// Columns of the table, as in params.py.
enum Column {
    column_y, column_x, column_height, column_width, column_flip, column_jitter_on, column_brightness,
    column_contrast, column_saturation, column_hue, column_order, column_gray, column_sigma, columns
};

// Operations that the distributions never ask for; what the table says of them is not looked at.
struct Wanted {
    bool jitter, gray, blur;
};

// The instruction sets that this build has and this machine runs, the best first.
std::vector<std::string> instruction_sets();

// Makes `rows` views; row i of the table, float32 [rows, 13], is for image i mod batch, and any of its values will do:
// what cannot be meant (crops outside the image, orders beyond 23, NaN) is brought to the nearest that can.
//
// images: uint8 [batch, image_height, image_width, 3]; out: [rows, size, size, 3], float32 or bfloat16.
// instructions: a name from instruction_sets(), or empty for the best. Throws std::invalid_argument.
void augment(const Format &format, const Wanted &wanted, const std::uint8_t *images, std::size_t batch,
             const float *table, std::size_t rows, unsigned threads, const std::string &instructions, void *out);

}  // namespace simclr
