"use strict";
// From the pixels of a picture to the square that the encoder takes, by the rule of `decode_image`: the shorter side is
// resized with a triangle filter as wide as the reduction, and the centre is kept. A browser's own resizing uses another
// filter. The arithmetic is Pillow's (weights in 22 bits, rows rounded to 8 bits before columns), so the bytes are too.
// A picture arrives in strips of rows: a photo of 50 megapixels as one canvas is more than some browsers allow.

(function (scope) {
  const BITS = 22;
  const HALF = 1 << (BITS - 1);

  // For each of `size` places along an axis: the first pixel that counts, and the weights from there on.
  // `from` and `to` bound the centre that is kept, within an axis of `length` pixels.
  function weights(length, from, to, size) {
    const scale = (to - from) / size;
    const reach = Math.max(scale, 1);
    return Array.from({ length: size }, (_, at) => {
      const centre = from + (at + 0.5) * scale;
      const first = Math.max(Math.trunc(centre - reach + 0.5), 0);
      const end = Math.min(Math.trunc(centre + reach + 0.5), length);
      const parts = [];
      for (let x = first; x < end; x++) parts.push(Math.max(1 - Math.abs((x - centre + 0.5) / reach), 0));
      const sum = parts.reduce((a, b) => a + b, 0);
      return { first, values: Int32Array.from(parts, (part) => Math.trunc((part / sum) * (1 << BITS) + 0.5)) };
    });
  }

  // How many pixels along a side are averaged before anything else. JPEG files much larger than needed are decoded at
  // an eighth, a quarter or half of their size by `decode_image`; averages over blocks are close to that.
  function blockOf(width, height, size, isJpeg) {
    const room = isJpeg ? Math.min(Math.floor(width / (3 * size)), Math.floor(height / (3 * size))) : 1;
    return [8, 4, 2, 1].find((block) => room >= block) ?? 1;
  }

  // Averages over blocks of `block` × `block`; those at the right and lower edge may have fewer pixels.
  function averaged(rgba, width, rows, block) {
    const columns = Math.ceil(width / block);
    const lines = Math.ceil(rows / block);
    const sums = new Uint32Array(columns * lines * 3);
    for (let y = 0; y < rows; y++) {
      const line = Math.floor(y / block) * columns;
      for (let x = 0, at = y * width * 4; x < width; x++, at += 4) {
        const to = (line + Math.floor(x / block)) * 3;
        sums[to] += rgba[at];
        sums[to + 1] += rgba[at + 1];
        sums[to + 2] += rgba[at + 2];
      }
    }
    const pixels = new Uint8ClampedArray(columns * lines * 4);
    for (let i = 0; i < columns * lines; i++) {
      const high = Math.min(block, rows - Math.floor(i / columns) * block);
      const count = high * Math.min(block, width - (i % columns) * block);
      for (let c = 0; c < 3; c++) pixels[i * 4 + c] = Math.floor((sums[i * 3 + c] + count / 2) / count);
    }
    return pixels;
  }

  // Takes `read(y, rows)`, which gives the RGBA bytes of that many full rows without transparency; returns the RGB
  // bytes of the `size` × `size` square, a Uint8Array.
  function square(width, height, size, isJpeg, read) {
    const block = blockOf(width, height, size, isJpeg);
    const wide = Math.ceil(width / block);
    const high = Math.ceil(height / block);
    const side = Math.min(wide, high);
    const left = Math.floor((wide - side) / 2);
    const top = Math.floor((high - side) / 2);
    const across = weights(wide, left, left + side, size);
    const down = weights(high, top, top + side, size);
    const start = down[0].first;
    const end = down[size - 1].first + down[size - 1].values.length;
    const narrow = new Uint8Array((end - start) * size * 3);
    const strip = Math.max(1, Math.floor((1 << 20) / (width * block))); // about 4 MB of pixels at a time
    for (let y = start; y < end; y += strip) {
      const rows = Math.min(strip, end - y);
      const stored = Math.min(rows * block, height - y * block);
      const pixels = read(y * block, stored);
      narrowed(block === 1 ? pixels : averaged(pixels, width, stored, block), wide, rows, across, narrow, y - start);
    }
    return shortened(narrow, start, down, size);
  }

  // The rows of a strip, resized along x, written into `narrow` from row `at` on.
  function narrowed(rgba, width, rows, across, narrow, at) {
    let to = at * across.length * 3;
    for (let y = 0; y < rows; y++) {
      for (const { first, values } of across) {
        let red = HALF, green = HALF, blue = HALF;
        for (let i = 0, from = (y * width + first) * 4; i < values.length; i++, from += 4) {
          red += rgba[from] * values[i];
          green += rgba[from + 1] * values[i];
          blue += rgba[from + 2] * values[i];
        }
        narrow[to++] = level(red);
        narrow[to++] = level(green);
        narrow[to++] = level(blue);
      }
    }
  }

  function shortened(narrow, start, down, size) {
    const width = size * 3;
    const result = new Uint8Array(size * width);
    down.forEach(({ first, values }, y) => {
      for (let x = 0; x < width; x++) {
        let sum = HALF;
        for (let i = 0, from = (first - start) * width + x; i < values.length; i++, from += width) {
          sum += narrow[from] * values[i];
        }
        result[y * width + x] = level(sum);
      }
    });
    return result;
  }

  function level(sum) {
    return Math.min(sum >> BITS, 255);
  }

  scope.pixels = { square };
})(globalThis);
