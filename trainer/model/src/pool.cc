// Max pooling of what relu leaves, as one operation that remembers one byte for each number of its result: where in its
// window that came from. libtorch's two remember eight bytes for each, and all of what relu left besides.
//
// Tensors are at::Tensor pointers, as tch has them. A function gives a message to be freed with free(), or null when all
// went well.

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>

#include "guarded.h"

// Compiled for several processors, of which the right one is chosen when the program starts. None of them rounds otherwise.
#ifdef __x86_64__
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

namespace {

// Numbers that are worth a thread of their own, as libtorch counts them.
constexpr int64_t GRAIN = 32768;
// Stands for no place of a window: nothing in it is above zero.
constexpr uint8_t NOWHERE = 255;

// Images with channels innermost, and what is left of them.
struct Shape {
    int64_t channels, height, width;
    int64_t kernel, stride, padding;

    int64_t pooled(int64_t side) const {
        return (side + 2 * padding - kernel) / stride + 1;
    }

    int64_t rows() const {
        return pooled(height);
    }

    int64_t columns() const {
        return pooled(width);
    }
};

// From the first to before the last.
struct Range {
    int64_t first, last;
};

// What a window covers of `side` pixels.
Range covered(int64_t begin, int64_t kernel, int64_t side) {
    return {std::max<int64_t>(begin, 0), std::min(begin + kernel, side)};
}

// The windows that cover a pixel.
Range covering(int64_t pixel, const Shape &shape, int64_t windows) {
    const int64_t from = pixel + shape.padding;
    const int64_t first = from < shape.kernel ? 0 : (from - shape.kernel) / shape.stride + 1;
    return {first, std::min(from / shape.stride + 1, windows)};
}

template <class T>
using Number = at::opmath_type<T>;

// As wide as a number, so that both are compared and chosen in the same lanes.
template <class T>
using Place = std::conditional_t<sizeof(Number<T>) == 8, int64_t, int32_t>;

// A row of the result and where it came from. As libtorch, the first of equals wins, and what is no number wins over all.
template <class T>
FOR_EACH_PROCESSOR void pool_row(const Shape &shape, int64_t row, const T *__restrict image, T *__restrict result,
                                 uint8_t *__restrict places) {
    const int64_t channels = shape.channels, columns = shape.columns();
    std::vector<Number<T>> mosts(channels);
    std::vector<Place<T>> ats(channels);
    Number<T> *__restrict most = mosts.data();
    Place<T> *__restrict at = ats.data();
    const int64_t top = row * shape.stride - shape.padding;
    const Range rows = covered(top, shape.kernel, shape.height);
    for (int64_t column = 0; column < columns; ++column) {
        const int64_t left = column * shape.stride - shape.padding;
        const Range pixels = covered(left, shape.kernel, shape.width);
        std::fill(mosts.begin(), mosts.end(), Number<T>(0));
        std::fill(ats.begin(), ats.end(), Place<T>(NOWHERE));
        for (int64_t i = rows.first; i < rows.last; ++i) {
            for (int64_t j = pixels.first; j < pixels.last; ++j) {
                const T *__restrict from = image + (i * shape.width + j) * channels;
                const Place<T> here = (i - top) * shape.kernel + (j - left);
                for (int64_t c = 0; c < channels; ++c) {
                    const Number<T> value = from[c];
                    const bool better = (value > most[c]) | (value != value);
                    most[c] = better ? value : most[c];
                    at[c] = better ? here : at[c];
                }
            }
        }
        for (int64_t c = 0; c < channels; ++c) {
            result[column * channels + c] = most[c];
            places[column * channels + c] = at[c];
        }
    }
}

// A row of the gradient by the images: each number gets the gradients of all that came from it, added up one by one.
template <class T>
FOR_EACH_PROCESSOR void spread_row(const Shape &shape, int64_t row, const T *__restrict gradient,
                                   const uint8_t *__restrict places, T *__restrict result) {
    const int64_t channels = shape.channels, columns = shape.columns();
    std::vector<Number<T>> sums(channels);
    Number<T> *__restrict sum = sums.data();
    const Range rows = covering(row, shape, shape.rows());
    for (int64_t column = 0; column < shape.width; ++column) {
        const Range windows = covering(column, shape, columns);
        std::fill(sums.begin(), sums.end(), Number<T>(0));
        for (int64_t i = rows.first; i < rows.last; ++i) {
            for (int64_t j = windows.first; j < windows.last; ++j) {
                const int64_t from = (i * columns + j) * channels;
                const T *__restrict given = gradient + from;
                const uint8_t *__restrict place = places + from;
                const Place<T> here = (row + shape.padding - i * shape.stride) * shape.kernel
                    + (column + shape.padding - j * shape.stride);
                for (int64_t c = 0; c < channels; ++c) {
                    const Number<T> more = given[c];
                    // Rounded each time, as libtorch does.
                    const Number<T> added = static_cast<T>(sum[c] + more);
                    sum[c] = Place<T>(place[c]) == here ? added : sum[c];
                }
            }
        }
        for (int64_t c = 0; c < channels; ++c) {
            result[column * channels + c] = sum[c];
        }
    }
}

// Calls `work` with image and row for each row of each image, in libtorch's threads.
template <class F>
void each_row(int64_t images, int64_t rows, int64_t numbers, const F &work) {
    const int64_t grain = std::max<int64_t>(GRAIN / std::max<int64_t>(numbers, 1), 1);
    at::parallel_for(0, images * rows, grain, [&](int64_t first, int64_t last) {
        for (int64_t at = first; at < last; ++at) {
            work(at / rows, at % rows);
        }
    });
}

at::Tensor images(const at::Tensor &like, at::IntArrayRef sizes) {
    return at::empty(sizes, like.options().memory_format(at::MemoryFormat::ChannelsLast));
}

// The result and its places.
std::pair<at::Tensor, at::Tensor> pool(const at::Tensor &input, const Shape &shape) {
    const at::Tensor x = input.contiguous(at::MemoryFormat::ChannelsLast);
    const int64_t count = x.size(0), rows = shape.rows(), columns = shape.columns();
    TORCH_CHECK(rows > 0 && columns > 0, "images of ", shape.height, " x ", shape.width, " are too small to be pooled");
    const at::Tensor result = images(x, {count, shape.channels, rows, columns});
    const at::Tensor places = at::empty({count, rows, columns, shape.channels}, x.options().dtype(at::kByte));
    AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "pool", [&] {
        const scalar_t *from = x.const_data_ptr<scalar_t>();
        scalar_t *to = result.mutable_data_ptr<scalar_t>();
        uint8_t *at = places.mutable_data_ptr<uint8_t>();
        const int64_t numbers = columns * shape.channels, image = shape.height * shape.width * shape.channels;
        each_row(count, rows, numbers, [&](int64_t n, int64_t row) {
            const int64_t begin = (n * rows + row) * numbers;
            pool_row(shape, row, from + n * image, to + begin, at + begin);
        });
    });
    return {result, places};
}

// The gradient by the images, from that by the result.
at::Tensor spread(const at::Tensor &by_result, const at::Tensor &places, const Shape &shape) {
    const at::Tensor gradient = by_result.contiguous(at::MemoryFormat::ChannelsLast);
    const int64_t count = gradient.size(0);
    const at::Tensor result = images(gradient, {count, shape.channels, shape.height, shape.width});
    AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, gradient.scalar_type(), "spread", [&] {
        const scalar_t *from = gradient.const_data_ptr<scalar_t>();
        const uint8_t *at = places.const_data_ptr<uint8_t>();
        scalar_t *to = result.mutable_data_ptr<scalar_t>();
        const int64_t numbers = shape.width * shape.channels, image = shape.rows() * shape.columns() * shape.channels;
        each_row(count, shape.height, numbers, [&](int64_t n, int64_t row) {
            spread_row(shape, row, from + n * image, at + n * image, to + (n * shape.height + row) * numbers);
        });
    });
    return result;
}

struct Pool : torch::autograd::Function<Pool> {
    static at::Tensor forward(torch::autograd::AutogradContext *context, const at::Tensor &x, int64_t kernel,
                              int64_t stride, int64_t padding) {
        const Shape shape{x.size(1), x.size(2), x.size(3), kernel, stride, padding};
        auto [result, places] = pool(x, shape);
        context->save_for_backward({places});
        context->saved_data["shape"] =
            std::vector<int64_t>{shape.channels, shape.height, shape.width, kernel, stride, padding};
        return result;
    }

    static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                   const torch::autograd::variable_list &gradients) {
        const std::vector<int64_t> s = context->saved_data["shape"].toIntVector();
        const Shape shape{s[0], s[1], s[2], s[3], s[4], s[5]};
        const at::Tensor places = context->get_saved_variables()[0];
        return {spread(gradients[0], places, shape), at::Tensor(), at::Tensor(), at::Tensor()};
    }
};

} // namespace

extern "C" {

// max_pool2d(relu(x)) with a square window.
char *anneal_pool(at::Tensor **out, const at::Tensor *x, int64_t kernel, int64_t stride, int64_t padding) noexcept {
    return guarded([&] {
        TORCH_CHECK(x->dim() == 4, "images have four dimensions, not ", x->dim());
        TORCH_CHECK(kernel * kernel < NOWHERE && stride > 0 && 2 * padding <= kernel, "no such window");
        *out = new at::Tensor(Pool::apply(*x, kernel, stride, padding));
    });
}
}
