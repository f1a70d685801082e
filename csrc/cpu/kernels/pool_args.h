// What the pooling kernels of a KernelSet work on: blocks of rows x columns cells whose columns are adjacent.
//
// A stream is a pointer to what belongs to cell (0, 0), with the same step from row to row for all streams of a call.
// Every stream can be read for a whole vector, even where columns are fewer.
#pragma once

#include <cstdint>

namespace convx {

// The greatest of tap_rows x tap_columns values per cell: value (r, s) of cell (0, 0) lies at
// rows_of_taps[r][offsets[s]] and its code is codes[r * code_row + s]. The first of equal values counts, and the last
// NaN.
template <class T>
struct PoolMaxArgs {
    int tap_rows, tap_columns;
    bool pairs;  // tap_columns is 2 and both lie in turn in rows_of_taps[r], so that column_step is 2
    const T* const* rows_of_taps;
    const int64_t* offsets;
    const T* codes;
    int64_t code_row;
    const T* first_codes;  // per column, added to the code of the first value; or null
    int64_t rank_offset;   // if not 0: this far behind each value lies a number to add to its code
    int64_t value_step;
    int64_t column_step;  // of the values; if not 1, columns are whole vectors this many vectors apart
    int64_t rows, columns;
    T* output;
    int64_t output_step;
    uint8_t* code_bytes;  // codes of the selected values as bytes, or null
    T* code_lanes;        // the same as numbers of type T, or null
    int64_t* indices;     // or added to index_origin + row * index_row + index_ramp[column]; one of the three at most
    int64_t code_step;
    int64_t index_origin, index_row;
    const int32_t* index_ramp;
};

// The values of one window inside the image: rows of adjacent elements.
template <class T>
struct PoolWindowArgs {
    const T* source;
    int64_t row_step;
    int64_t rows, columns;  // at least one of each
    bool wants_place;
};
template <class T>
struct PoolWindowBest {
    T value;
    int64_t place;  // in row-major order, where it was asked for
};

// The way back from lanes to planes: element i of plane k is lane k of vector i. Values, and their codes or indices
// (these with index_ramp[i] added) unless null. The vectors after the last one can be read.
template <class T>
struct PoolUnpackArgs {
    const T* values;
    const T* codes;
    int64_t count;
    int planes;
    int64_t ahead;  // the outputs of the planes that come next lie so many elements further on
    T* const* outputs;
    uint8_t* const* code_bytes;
    int64_t* const* indices;
    const int32_t* index_ramp;
};

// Per cell the sum of tap_rows x tap_columns gradients where their code is the wanted one, in their order: gradient
// (r, s) of cell (0, 0) lies at grad_rows[r][offsets[s]], its code at code_rows[r][offsets[s]], and the wanted code is
// wanted[r * wanted_row + s]. No taps: zeros.
template <class T>
struct PoolSumArgs {
    int tap_rows, tap_columns;
    const T* const* grad_rows;
    const uint8_t* const* code_rows;
    const int64_t* offsets;
    const uint8_t* wanted;
    int64_t wanted_row;
    int64_t grad_step, code_step;
    int64_t rows, columns;
    T* output;
    int64_t output_step;
};

// Windows of two columns that tile a plane: the gradient of the window at (row, column) goes to the one of its cells
// that its code names, at output + (row * tap_rows + code / 2) * output_row + 2 * column + code % 2, zeros to the
// others.
template <class T>
struct PoolSpreadArgs {
    const T* grads;
    const uint8_t* codes;
    int64_t grad_step, code_step;
    int64_t rows, columns;
    int tap_rows;
    T* output;
    int64_t output_row;
};

// PoolSumArgs with codes as numbers of type T, one vector per cell: gradient t of the first cell lies at grads +
// offsets[t], its code at codes + offsets[t].
template <class T>
struct PoolLaneSumArgs {
    int taps;
    const T *grads, *codes;
    const int64_t* offsets;
    const T* wanted;
    int64_t rows, columns;  // columns in vectors, which are adjacent
    int64_t row_step;
    T* output;
    int64_t output_row, output_step;  // from row to row and from column to column
};

// Codes like those of PoolLaneSumArgs, of windows that have the same taps.
template <class T>
struct PoolLaneCheckArgs {
    const T* codes;
    int64_t rows, columns, row_step;
    const T* legal;  // `taps` codes, besides the one for no gradient
    int taps;
    bool all_taps;  // the legal codes are 0, 1, ... taps - 1
};

// Indices of selected cells, to become the codes of windows whose columns are adjacent input columns under a tap each.
// The window at (row, column) begins at index_origin + row * index_row + index_ramp[column].
template <class T>
struct PoolIndexArgs {
    const int64_t* indices;
    uint8_t* codes;
    int64_t rows, columns;
    int64_t index_step, code_step;  // from row to row, of both arrays
    int64_t index_origin, index_row;
    const int32_t* index_ramp;  // a whole vector longer than columns, like the next four
    const T *below_tap_row, *above_tap_row, *below_tap_column, *above_tap_column;  // per column: taps inside the image
    int tap_rows;
    T tap_columns, tap_row_distance;  // the kernel's columns, and indices from one of its rows to the next
};

// Rows made ready to be streams: `before` lanes of `fill`, `pixels` groups of adjacent elements, `after` lanes of
// `fill`. Up to two vectors behind these may be written, too.
template <class T>
struct PoolStageArgs {
    T* staged;
    int64_t staged_step;
    const T* source;
    int64_t source_step;
    int64_t rows;
    int64_t before, pixels, after;
    int64_t group, pixel_step;  // elements of a pixel, and from one pixel to the next
    T fill;
    bool beyond;  // two vectors behind the last pixel can be read
};

}  // namespace convx
