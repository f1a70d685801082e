// Winograd's method (winograd_parts.h) for small planes: vectors run over channels instead of tiles.
//
// A 7 x 7 plane has 4 tiles: a vector of tiles is half empty for a single image, while there are channels enough. So
// the products M of a frequency are tiles (broadcast) x output channels (vectors), the inputs V are made once for all
// tasks, and a task makes the weights U of its output channels in L2, chunk by chunk, and never writes them elsewhere.
//
// An axis is cut into long tiles of 4 outputs and short ones of 3 (7 = 4 + 3, 14 = 4 + 4 + 3 + 3). A short tile is a
// long one whose last output is not wanted: that output alone needs the last frequency, which is left out. At 7 x 7 and
// 14 x 14 a sixth of the products falls away. Tiles are sorted so that every frequency works on adjacent ones.
#include "common/rounding.h"
#include "cpu/conv2d/method_row.h"
#include "cpu/conv2d/winograd_parts.h"
#include "cpu/runtime/run_tasks.h"

namespace convx {

namespace {

constexpr int64_t chunk_target = 64;  // channels; with 16 rows 144 KiB of transformed weights
// Of a plane: its tasks are few, since they cut the output channels alone.
constexpr int64_t most_tiles = 64;
constexpr int64_t most_panels = 2;

struct Blocks {
    int64_t kc = 1;  // reduction channels that are summed in registers in one go
    int64_t chunks = 1;
    int64_t tiles = 1;         // of an image
    int64_t block_images = 1;  // whose transformed inputs are kept
    int64_t nc_panels = 1;     // of nr output channels, of one task
    int64_t source_pixels = 1, dest_pixels = 1;
};

template <class T>
Blocks plan_blocks(const ImplicitGemm<T>& gemm, const KernelSet<T>& kernels) {
    Blocks blocks;
    const int64_t channels = std::max<int64_t>(gemm.channels, 1), height = gemm.h->positions, width = gemm.w->positions;
    blocks.kc = round_up(even_part(channels, chunk_target), kernels.lanes);
    blocks.chunks = ceil_div(channels, blocks.kc);
    blocks.tiles = std::max<int64_t>(winograd_tiles(height) * winograd_tiles(width), 1);
    blocks.block_images = std::clamp<int64_t>(winograd_few_tiles / blocks.tiles, 1, std::max<int64_t>(gemm.batch, 1));
    blocks.nc_panels = ceil_div(gemm.rows, kernels.nr) >= winograd_tasks * most_panels ? most_panels : 1;
    blocks.source_pixels = (height + 2) * (width + 2);
    blocks.dest_pixels = height * width;
    return blocks;
}

// The tiles of one axis: long ones first.
struct TileAxis {
    int64_t positions, tiles, longs;

    explicit TileAxis(int64_t size)
        : positions(size), tiles(winograd_tiles(size)),
          longs(std::max<int64_t>(size - (winograd_outputs - 1) * tiles, 0)) {}
    int64_t start(int64_t tile) const { return winograd_outputs * tile - std::max<int64_t>(tile - longs, 0); }
    int64_t outputs(int64_t tile) const {
        return std::min<int64_t>(tile < longs ? winograd_outputs : winograd_outputs - 1, positions - start(tile));
    }
    int64_t read() const { return start(tiles - 1) + winograd_inputs; }
};

// Tiles of a block of images, in four classes one behind the other: (h short, w long), (long, long), (long, short),
// (short, short). The first two have the last column frequency, the middle two the last row frequency.
struct TileOrder {
    const TileAxis &h, &w;
    int64_t images;
    int64_t first[5];

    TileOrder(const TileAxis& axis_h, const TileAxis& axis_w, int64_t image_count)
        : h(axis_h), w(axis_w), images(image_count) {
        const int64_t h_shorts = h.tiles - h.longs, w_shorts = w.tiles - w.longs;
        const int64_t count[4] = {h_shorts * w.longs, h.longs * w.longs, h.longs * w_shorts, h_shorts * w_shorts};
        first[0] = 0;
        for (int i = 0; i < 4; ++i) first[i + 1] = first[i] + images * count[i];
    }
    int64_t tiles() const { return first[4]; }
    int64_t index(int64_t n, int64_t i, int64_t j) const {
        const bool h_short = i >= h.longs, w_short = j >= w.longs;
        const int which = h_short ? (w_short ? 3 : 0) : (w_short ? 2 : 1);
        const int64_t columns = w_short ? w.tiles - w.longs : w.longs;
        return first[which] + n * (first[which + 1] - first[which]) / images + (h_short ? i - h.longs : i) * columns +
               (w_short ? j - w.longs : j);
    }
    int64_t begin(int64_t frequency) const { return frequency / winograd_inputs == 5 ? first[1] : 0; }
    int64_t end(int64_t frequency) const {
        const bool last_h = frequency / winograd_inputs == 5, last_w = frequency % winograd_inputs == 5;
        return last_w ? first[2] : last_h ? first[3] : first[4];
    }
};

// Source rows or columns [begin, end) are all that is read.
struct ReadRange {
    int64_t begin = 0, end = 0;

    explicit ReadRange(const std::vector<int64_t>& order) {
        for (const int64_t index : order)
            if (index != AxisTable::outside) {
                begin = end == 0 ? index : std::min(begin, index);
                end = std::max(end, index + 1);
            }
    }
    int64_t size() const { return end - begin; }
};

// [group][panel][chunk][frequency][channel][nr]
WinogradWeightLayout weight_layout(int64_t kc, int64_t channels, int64_t rows, int64_t nr) {
    const int64_t chunks = ceil_div(channels, kc), frequency = kc * nr + frequency_padding;
    const int64_t chunk = winograd_frequencies * frequency;
    return {nr, kc, ceil_div(rows, nr), chunks, frequency, chunk, chunks * chunk};
}

// Transformed inputs: [chunk][frequency][tile][channel].
struct InputLayout {
    int64_t frequency, chunk;
    InputLayout(int64_t tiles, int64_t kc)
        : frequency(tiles * kc + frequency_padding), chunk(winograd_frequencies * frequency) {}
};

template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const Blocks& blocks, const KernelSet<T>& kernels)
        : product_frequency(blocks.block_images * blocks.tiles * kernels.nr + frequency_padding),
          product_panel(winograd_frequencies * product_frequency),
          weights(parts.take<T>(blocks.nc_panels * weight_layout(blocks.kc, blocks.kc, 1, kernels.nr).chunk)),
          products(parts.take<T>(blocks.nc_panels * product_panel)),
          taps(parts.take<T>(blocks.kc * 9 * kernels.nr + kernels.lanes)),
          stage(parts.take<T>(std::max(blocks.source_pixels * blocks.kc, blocks.dest_pixels * kernels.nr))),
          rows(parts.take<const T*>(std::max(blocks.kc, blocks.dest_pixels))), pad(parts.take<T>(blocks.kc)),
          bias(parts.take<T>(kernels.nr)), faults(parts.take<T>(kernels.lanes)), bytes(parts.bytes()) {}
    int64_t product_frequency, product_panel;
    T* weights;   // U of a chunk: [panel][frequency][channel][nr]
    T* products;  // M: [panel][frequency][tile][nr]
    T* taps;
    T* stage;  // a chunk of channels of an image's source, or a panel of its outputs: [pixel][channel]
    const T** rows;
    T* pad;  // the channels of a pixel outside
    T* bias;
    T* faults;
    int64_t bytes;
};

template <class T>
class ChannelDriver : public WinogradDriver<T> {
public:
    ChannelDriver(const ImplicitGemm<T>& gemm, bool mirrored, const KernelSet<T>& kernels)
        : ChannelDriver(gemm, mirrored, kernels, plan_blocks(gemm, kernels)) {}

    const Blocks& blocks() const { return blocks_; }

    TaskPlan tasks() const {
        const InputLayout inputs(blocks_.block_images * blocks_.tiles, blocks_.kc);
        TaskPlan plan;
        plan.tasks = ceil_div(weight_layout_.panels, blocks_.nc_panels);
        plan.flops = gemm_.flops();
        plan.shared_bytes = cache_lines(blocks_.chunks * inputs.chunk * int64_t{sizeof(T)});
        plan.worker_bytes = Scratch<T>(ScratchParts(), blocks_, kernels_).bytes;
        return plan;
    }

    void run(const TaskPlan& plan, Faults faulty) {
        faulty_ = faulty;
        const int64_t tasks = plan.tasks;
        const TaskRunner runner(plan);
        T* inputs = static_cast<T*>(runner.shared());
        for (int64_t n = 0; n < gemm_.batch; n += blocks_.block_images) {
            const TileOrder order(h_, w_, std::min(blocks_.block_images, gemm_.batch - n));
            for (int64_t group = 0; group < gemm_.groups; ++group) {
                runner.run(order.images * weight_layout_.chunks, [&](int64_t task, ScratchParts parts) {
                    transform_inputs(order, group, n, task % order.images, task / order.images, inputs,
                                     Scratch<T>(parts, blocks_, kernels_));
                });
                runner.run(tasks, [&](int64_t task, ScratchParts parts) {
                    const int64_t panel = task * blocks_.nc_panels;
                    const int64_t panels = std::min(blocks_.nc_panels, weight_layout_.panels - panel);
                    const Scratch<T> own(parts, blocks_, kernels_);
                    for (int64_t chunk = 0; chunk < weight_layout_.chunks; ++chunk)
                        multiply(order, group, panel, panels, chunk, inputs, own);
                    for (int64_t p = 0; p < panels; ++p)
                        for (int64_t image = 0; image < order.images; ++image)
                            store_image(order, group, panel + p, n + image, image, own.products + p * own.product_panel,
                                        own);
                });
            }
        }
    }

private:
    using WinogradDriver<T>::gemm_;
    using WinogradDriver<T>::kernels_;
    using WinogradDriver<T>::weight_layout_;
    using WinogradDriver<T>::weights_;
    using WinogradDriver<T>::chunk_channels;

    ChannelDriver(const ImplicitGemm<T>& gemm, bool mirrored, const KernelSet<T>& kernels, const Blocks& blocks)
        : WinogradDriver<T>(gemm, mirrored, kernels, weight_layout(blocks.kc, gemm.channels, gemm.rows, kernels.nr)),
          h_(gemm.h->positions), w_(gemm.w->positions), row_of_(winograd_read_order(*gemm.h, mirrored, h_.read())),
          column_of_(winograd_read_order(*gemm.w, mirrored, w_.read())), source_h_(row_of_), source_w_(column_of_),
          blocks_(blocks) {}

    // One chunk of channels of one image.
    void transform_inputs(const TileOrder& order, int64_t group, int64_t first_image, int64_t image, int64_t chunk,
                          T* inputs, const Scratch<T>& scratch) const {
        const InputLayout layout(order.tiles(), blocks_.kc);
        const int64_t channels = chunk_channels(chunk);
        const Strides& from = gemm_.source_stride;
        const T* source = gemm_.source + (first_image + image) * from.n + source_h_.begin * from.h +
                          source_w_.begin * from.w + (group * gemm_.channels + chunk * blocks_.kc) * from.c;
        int64_t row_stride = from.h, column_stride = from.w;
        if (from.c != 1) {
            stage_channels(source, channels, scratch);
            source = scratch.stage;
            column_stride = blocks_.kc;
            row_stride = source_w_.size() * column_stride;
        }
        std::fill(scratch.pad, scratch.pad + channels, gemm_.pad);
        for (int64_t i = 0; i < h_.tiles; ++i)
            for (int64_t j = 0; j < w_.tiles; ++j) {
                const T* pixels[winograd_frequencies];
                for (int64_t p = 0; p < winograd_inputs; ++p)
                    for (int64_t q = 0; q < winograd_inputs; ++q) {
                        const int64_t h = row_of_[static_cast<size_t>(h_.start(i) + p)];
                        const int64_t w = column_of_[static_cast<size_t>(w_.start(j) + q)];
                        const bool outside = h == AxisTable::outside || w == AxisTable::outside;
                        pixels[winograd_inputs * p + q] = outside ? scratch.pad
                                                                  : source + (h - source_h_.begin) * row_stride +
                                                                        (w - source_w_.begin) * column_stride;
                    }
                kernels_.winograd_input_pixels({pixels, channels,
                                                inputs + chunk * layout.chunk + order.index(image, i, j) * blocks_.kc,
                                                layout.frequency});
            }
    }

    // What the tiles read of an image, to [pixel][channel].
    void stage_channels(const T* source, int64_t channels, const Scratch<T>& scratch) const {
        const Strides& from = gemm_.source_stride;
        const int64_t width = source_w_.size(), height = source_h_.size(), step = blocks_.kc;
        if (from.w == 1) {
            const bool flat = from.h == width;
            for (int64_t i = 0; i < (flat ? 1 : height); ++i) {
                for (int64_t c = 0; c < channels; ++c) scratch.rows[c] = source + i * from.h + c * from.c;
                kernels_.pack_transposed(scratch.stage + i * width * step, step, scratch.rows,
                                         static_cast<int>(channels), flat ? height * width : width);
            }
            return;
        }
        const LaneRun lanes{0, static_cast<int32_t>(channels), 0};
        for (int64_t i = 0; i < height; ++i)
            kernels_.pack_lanes(scratch.stage + i * width * step, step, source + i * from.h, from.w, width, &lanes, 1,
                                static_cast<int>(channels), from.c, T(0));
    }

    void multiply(const TileOrder& order, int64_t group, int64_t panel, int64_t panels, int64_t chunk, const T* inputs,
                  const Scratch<T>& scratch) const {
        const InputLayout layout(order.tiles(), blocks_.kc);
        const T* weights[most_panels];
        for (int64_t p = 0; p < panels; ++p) {
            T* own = scratch.weights + p * weight_layout_.chunk;
            if (!weights_)
                this->transform_weights(group, panel + p, chunk, scratch.taps, own, weight_layout_.frequency);
            weights[p] = weights_ ? weights_ + weight_layout_.at(group, panel + p, chunk) : own;
        }
        for (int64_t f = 0; f < winograd_frequencies; ++f) {
            const int64_t begin = order.begin(f);
            for (int64_t p = 0; p < panels; ++p)
                kernels_.winograd_tile_products(
                    {inputs + chunk * layout.chunk + f * layout.frequency + begin * blocks_.kc, blocks_.kc,
                     order.end(f) - begin, weights[p] + f * weight_layout_.frequency, chunk_channels(chunk),
                     scratch.products + p * scratch.product_panel + f * scratch.product_frequency + begin * kernels_.nr,
                     chunk > 0});
        }
    }

    // A panel of rows of an image: A' m A.
    void store_image(const TileOrder& order, int64_t group, int64_t panel, int64_t n, int64_t image, const T* products,
                     const Scratch<T>& scratch) const {
        const Strides& to = gemm_.dest_stride;
        const int64_t nr = kernels_.nr, rows = std::min(nr, gemm_.rows - panel * nr);
        const int64_t channel = group * gemm_.rows + panel * nr;
        T* dest = gemm_.dest + n * to.n + channel * to.c;
        const bool direct = to.c == 1;
        WinogradPixelOutputArgs<T> args{};
        args.source_frequency = scratch.product_frequency;
        args.rows = direct ? rows : nr;
        args.dest_row = direct ? to.h : w_.positions * nr;
        args.dest_pixel = direct ? to.w : nr;
        if (gemm_.bias) {
            std::fill(scratch.bias, scratch.bias + nr, T(0));
            for (int64_t i = 0; i < rows; ++i) scratch.bias[i] = gemm_.bias[(channel + i) * gemm_.bias_stride];
            args.bias = scratch.bias;
        }
        args.relu = gemm_.relu;
        args.faults = scratch.faults;
        std::fill(scratch.faults, scratch.faults + kernels_.lanes, T(0));
        for (int64_t i = 0; i < h_.tiles; ++i)
            for (int64_t j = 0; j < w_.tiles; ++j) {
                args.source = products + order.index(image, i, j) * nr;
                args.height = static_cast<int>(h_.outputs(i));
                args.width = static_cast<int>(w_.outputs(j));
                args.dest =
                    (direct ? dest : scratch.stage) + h_.start(i) * args.dest_row + w_.start(j) * args.dest_pixel;
                kernels_.winograd_output_pixels(args);
            }
        if (!direct) scatter(dest, rows, scratch);
        if (has_fault(scratch.faults, kernels_.lanes)) faulty_[n] = true;
    }

    // [pixel][row], staged, to planes.
    void scatter(T* dest, int64_t rows, const Scratch<T>& scratch) const {
        const Strides& to = gemm_.dest_stride;
        const int64_t nr = kernels_.nr, height = h_.positions, width = w_.positions;
        if (to.w == 1) {
            const bool flat = to.h == width;
            for (int64_t i = 0; i < height * width; ++i) scratch.rows[i] = scratch.stage + i * nr;
            for (int64_t i = 0; i < (flat ? 1 : height); ++i)
                kernels_.pack_transposed(dest + i * to.h, to.c, scratch.rows + i * width,
                                         static_cast<int>(flat ? height * width : width), rows);
            return;
        }
        for (int64_t i = 0; i < height; ++i)
            for (int64_t j = 0; j < width; ++j)
                for (int64_t k = 0; k < rows; ++k)
                    dest[k * to.c + i * to.h + j * to.w] = scratch.stage[(i * width + j) * nr + k];
    }

    const TileAxis h_, w_;
    const std::vector<int64_t> row_of_, column_of_;
    const ReadRange source_h_, source_w_;
    const Blocks blocks_;
    Faults faulty_ = nullptr;
};

}  // namespace

struct WinogradChannelsMethod : WinogradMethod<ChannelDriver> {
    static constexpr const char* name = "winograd-channels";

    static Verdict supports(const ConvProblem& problem, ConvPass pass) {
        const Axis &h = problem.h, &w = problem.w;
        const bool forward = pass == ConvPass::forward;
        if (winograd_tiles(forward ? h.output() : h.input) * winograd_tiles(forward ? w.output() : w.input) >
            most_tiles)
            return {"needs a plane of at most 64 tiles of 4 x 4: all tasks share its transformed inputs"};
        return supports_winograd(problem, pass);
    }

    static Work work(const WorkSizes& sizes) {
        const double tiles = winograd_tile_count(sizes), lanes = sizes.tile.lanes;
        const TileGrid grid(tiles, sizes.tile.mr, sizes.vectors(sizes.rows), sizes.tile.nr_vectors);
        Work work = sizes.common();
        work[WorkKind::cycles] = winograd_frequencies * sizes.groups * sizes.channels * grid.cycles;
        work[WorkKind::runs] = winograd_frequencies * sizes.groups;
        work[WorkKind::tiles] = winograd_frequencies * sizes.groups * grid.tiles * std::ceil(sizes.channels / 128);
        work[WorkKind::transforms] = sizes.groups * (sizes.channels + sizes.rows) * tiles / lanes;
        return work;
    }

    template <class T>
    static void describe(const WindowSum<T>& sum, const Plan& plan, const KernelSet<T>& kernels, PassPlan& text) {
        const Blocks blocks = ChannelDriver<T>(phase_of(sum, plan.h, plan.w, 0, 0), !sum.forward(), kernels).blocks();
        text.tile = "4 x 4 and 3 x 3 outputs, " + std::to_string(kernels.mr) + " tiles of a frequency x " +
                    std::to_string(kernels.nr) + " channels";
        text.block = std::to_string(blocks.block_images * blocks.tiles) + " tiles x " +
                     std::to_string(std::min(blocks.nc_panels * kernels.nr, sum.rows)) + " channels, sums of " +
                     std::to_string(blocks.kc) + " channels";
        text.reason =
            "F(4x4, 3x3): 36 multiplications for 16 outputs instead of 144; few tiles, so vectors over channels; a "
            "task makes the transformed weights that it needs in L2; images with inf, NaN or an overflow by a direct "
            "method";
    }
};

template const Method<WindowSum<float>>& method_row<WinogradChannelsMethod, WindowSum<float>>();
template const Method<WindowSum<double>>& method_row<WinogradChannelsMethod, WindowSum<double>>();

}  // namespace convx
