// Max pooling of what relu leaves, as one operation that remembers one byte for each number of its result: where in its
// window that came from. libtorch's two remember eight bytes for each, and all of what relu left besides.
//
// And BatchNorm before it, as part of the operation: what it makes of its input, four times as large as what is left of that,
// is never in memory as a whole, and the gradient by it becomes the one by the input in its place.
//
// Tensors are at::Tensor pointers, as tch has them. A function gives a message to be freed with free(), or null when all
// went well.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/batch_norm_update_stats.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
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

// From the first to before the last.
struct Range {
    int64_t first, last;
};

// What a window covers of `side` pixels.
Range covered(int64_t begin, int64_t kernel, int64_t side) {
    return {std::max<int64_t>(begin, 0), std::min(begin + kernel, side)};
}

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

    int64_t row_numbers() const {
        return width * channels;
    }

    // The rows that the windows of a row of the result cover.
    Range covered_by(int64_t row) const {
        return covered(row * stride - padding, kernel, height);
    }
};

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

// A row of the result and where it came from, given the rows of the image that its windows cover. As libtorch, the first of
// equals wins, and what is no number wins over all.
template <class T>
FOR_EACH_PROCESSOR void pool_row(const Shape &shape, int64_t row, const T *__restrict covered_rows, T *__restrict result,
                                 uint8_t *__restrict places) {
    const int64_t channels = shape.channels, columns = shape.columns();
    std::vector<Number<T>> mosts(channels);
    std::vector<Place<T>> ats(channels);
    Number<T> *__restrict most = mosts.data();
    Place<T> *__restrict at = ats.data();
    const int64_t top = row * shape.stride - shape.padding;
    const Range rows = shape.covered_by(row);
    for (int64_t column = 0; column < columns; ++column) {
        const int64_t left = column * shape.stride - shape.padding;
        const Range pixels = covered(left, shape.kernel, shape.width);
        std::fill(mosts.begin(), mosts.end(), Number<T>(0));
        std::fill(ats.begin(), ats.end(), Place<T>(NOWHERE));
        for (int64_t i = rows.first; i < rows.last; ++i) {
            for (int64_t j = pixels.first; j < pixels.last; ++j) {
                const T *__restrict from = covered_rows + ((i - rows.first) * shape.width + j) * channels;
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

// What a BatchNorm makes of pixels: for each channel a multiple and a constant.
template <class T>
FOR_EACH_PROCESSOR void normalise(int64_t pixels, int64_t channels, const T *__restrict x, const Number<T> *__restrict factor,
                                  const Number<T> *__restrict term, T *__restrict result) {
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
        for (int64_t c = 0; c < channels; ++c) {
            result[pixel * channels + c] = static_cast<Number<T>>(x[pixel * channels + c]) * factor[c] + term[c];
        }
    }
}

// Adds up, for each channel, the gradient by what BatchNorm made of pixels, and its product with their distance from the mean.
template <class T>
FOR_EACH_PROCESSOR void add_up(int64_t pixels, int64_t channels, const T *__restrict x, const T *__restrict gradient,
                               const Number<T> *__restrict mean, Number<T> *__restrict sum, Number<T> *__restrict product) {
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
        for (int64_t c = 0; c < channels; ++c) {
            const Number<T> more = gradient[pixel * channels + c];
            sum[c] += more;
            product[c] += (static_cast<Number<T>>(x[pixel * channels + c]) - mean[c]) * more;
        }
    }
}

// The gradient by pixels from that by what BatchNorm made of them, in their place.
template <class T>
FOR_EACH_PROCESSOR void denormalise(int64_t pixels, int64_t channels, const T *__restrict x, const Number<T> *__restrict mean,
                                    const Number<T> *__restrict slope, const Number<T> *__restrict centre,
                                    const Number<T> *__restrict factor, T *__restrict gradient) {
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
        for (int64_t c = 0; c < channels; ++c) {
            const int64_t at = pixel * channels + c;
            const Number<T> distance = static_cast<Number<T>>(x[at]) - mean[c];
            gradient[at] = (static_cast<Number<T>>(gradient[at]) - centre[c] - distance * slope[c]) * factor[c];
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

// What a BatchNorm does to each channel.
struct Norm {
    at::Tensor factor, term;
};

// The result and its places, of images or of what `norm` makes of them.
std::pair<at::Tensor, at::Tensor> pool(const at::Tensor &x, const Norm *norm, const Shape &shape) {
    const int64_t count = x.size(0), rows = shape.rows(), columns = shape.columns();
    TORCH_CHECK(std::min(shape.height, shape.width) + 2 * shape.padding >= shape.kernel, "images of ", shape.height, " x ",
                shape.width, " are too small to be pooled");
    const at::Tensor result = images(x, {count, shape.channels, rows, columns});
    const at::Tensor places = at::empty({count, rows, columns, shape.channels}, x.options().dtype(at::kByte));
    AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "pool", [&] {
        const scalar_t *from = x.const_data_ptr<scalar_t>();
        scalar_t *to = result.mutable_data_ptr<scalar_t>();
        uint8_t *at = places.mutable_data_ptr<uint8_t>();
        const int64_t numbers = columns * shape.channels;
        each_row(count, rows, numbers, [&](int64_t n, int64_t row) {
            const int64_t begin = (n * rows + row) * numbers;
            const Range covers = shape.covered_by(row);
            const scalar_t *first = from + (n * shape.height + covers.first) * shape.row_numbers();
            if (!norm) {
                pool_row(shape, row, first, to + begin, at + begin);
                return;
            }
            std::vector<scalar_t> normalised((covers.last - covers.first) * shape.row_numbers());
            using N = Number<scalar_t>;
            normalise((covers.last - covers.first) * shape.width, shape.channels, first, norm->factor.const_data_ptr<N>(),
                      norm->term.const_data_ptr<N>(), normalised.data());
            pool_row<scalar_t>(shape, row, normalised.data(), to + begin, at + begin);
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

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void remember(AutogradContext *context, const Shape &s) {
    context->saved_data["shape"] = std::vector<int64_t>{s.channels, s.height, s.width, s.kernel, s.stride, s.padding};
}

Shape remembered(AutogradContext *context) {
    const std::vector<int64_t> s = context->saved_data["shape"].toIntVector();
    return {s[0], s[1], s[2], s[3], s[4], s[5]};
}

struct Pool : torch::autograd::Function<Pool> {
    static at::Tensor forward(AutogradContext *context, const at::Tensor &input, int64_t kernel, int64_t stride,
                              int64_t padding) {
        const at::Tensor x = input.contiguous(at::MemoryFormat::ChannelsLast);
        const Shape shape{x.size(1), x.size(2), x.size(3), kernel, stride, padding};
        auto [result, places] = pool(x, nullptr, shape);
        context->save_for_backward({places});
        remember(context, shape);
        return result;
    }

    static variable_list backward(AutogradContext *context, const variable_list &gradients) {
        const at::Tensor places = context->get_saved_variables()[0];
        return {spread(gradients[0], places, remembered(context)), at::Tensor(), at::Tensor(), at::Tensor()};
    }
};

struct NormPool : torch::autograd::Function<NormPool> {
    static at::Tensor forward(AutogradContext *context, const at::Tensor &input, const at::Tensor &weight,
                              const at::Tensor &bias, const at::Tensor &running_mean, const at::Tensor &running_var,
                              double momentum, double eps, int64_t kernel, int64_t stride, int64_t padding) {
        const at::Tensor x = input.contiguous(at::MemoryFormat::ChannelsLast);
        const Shape shape{x.size(1), x.size(2), x.size(3), kernel, stride, padding};
        const auto [mean, variance] = at::batch_norm_update_stats(x, running_mean, running_var, momentum);
        const at::Tensor scale = at::empty_like(mean);
        const Norm norm{at::empty_like(mean), at::empty_like(mean)};
        AT_DISPATCH_FLOATING_TYPES(mean.scalar_type(), "norm", [&] {
            for (int64_t c = 0; c < shape.channels; ++c) {
                scalar_t &factor = norm.factor.mutable_data_ptr<scalar_t>()[c];
                scalar_t &inverse = scale.mutable_data_ptr<scalar_t>()[c];
                inverse = scalar_t(1) / std::sqrt(variance.const_data_ptr<scalar_t>()[c] + eps);
                factor = inverse * weight.const_data_ptr<scalar_t>()[c];
                norm.term.mutable_data_ptr<scalar_t>()[c] =
                    bias.const_data_ptr<scalar_t>()[c] - mean.const_data_ptr<scalar_t>()[c] * factor;
            }
        });
        auto [result, places] = pool(x, &norm, shape);
        context->save_for_backward({x, weight, mean, scale, places});
        remember(context, shape);
        return result;
    }

    static variable_list backward(AutogradContext *context, const variable_list &gradients) {
        const variable_list saved = context->get_saved_variables();
        const at::Tensor &x = saved[0], &weight = saved[1], &mean = saved[2], &scale = saved[3], &places = saved[4];
        const Shape shape = remembered(context);
        const at::Tensor gradient = spread(gradients[0], places, shape);
        const int64_t count = x.size(0), channels = shape.channels, pixels = shape.height * shape.width;
        const at::Tensor by_weight = at::empty_like(mean), by_bias = at::empty_like(mean);
        AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "by_norm", [&] {
            using N = Number<scalar_t>;
            const scalar_t *from = x.const_data_ptr<scalar_t>();
            scalar_t *to = gradient.mutable_data_ptr<scalar_t>();
            const N *means = mean.const_data_ptr<N>();
            // Sums of each image, so that the sum of all does not depend on the number of threads.
            std::vector<N> sums(count * channels), products(count * channels);
            at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
                for (int64_t n = first; n < last; ++n) {
                    const int64_t begin = n * pixels * channels;
                    add_up<scalar_t>(pixels, channels, from + begin, to + begin, means, sums.data() + n * channels,
                                     products.data() + n * channels);
                }
            });
            std::vector<N> centre(channels), slope(channels), factor(channels);
            for (int64_t c = 0; c < channels; ++c) {
                N sum = 0, product = 0;
                for (int64_t n = 0; n < count; ++n) {
                    sum += sums[n * channels + c];
                    product += products[n * channels + c];
                }
                const N inverse = scale.const_data_ptr<N>()[c];
                by_bias.mutable_data_ptr<N>()[c] = sum;
                by_weight.mutable_data_ptr<N>()[c] = product * inverse;
                centre[c] = sum / (count * pixels);
                slope[c] = product * inverse * inverse / (count * pixels);
                factor[c] = inverse * weight.const_data_ptr<N>()[c];
            }
            each_row(count, shape.height, shape.row_numbers(), [&](int64_t n, int64_t row) {
                const int64_t begin = (n * shape.height + row) * shape.row_numbers();
                denormalise<scalar_t>(shape.width, channels, from + begin, means, slope.data(), centre.data(),
                                      factor.data(), to + begin);
            });
        });
        const at::Tensor none;
        return {gradient, by_weight, by_bias, none, none, none, none, none, none, none};
    }
};

void check(const at::Tensor &x, int64_t kernel, int64_t stride, int64_t padding) {
    TORCH_CHECK(x.dim() == 4, "images have four dimensions, not ", x.dim());
    TORCH_CHECK(kernel * kernel < NOWHERE && stride > 0 && 2 * padding <= kernel, "no such window");
}

} // namespace

extern "C" {

// max_pool2d(relu(x)) with a square window.
char *anneal_pool(at::Tensor **out, const at::Tensor *x, int64_t kernel, int64_t stride, int64_t padding) noexcept {
    return guarded([&] {
        check(*x, kernel, stride, padding);
        *out = new at::Tensor(Pool::apply(*x, kernel, stride, padding));
    });
}

// max_pool2d(relu(batch_norm(x))) with a square window, by the statistics of the batch, which move the running ones.
char *anneal_norm_pool(at::Tensor **out, const at::Tensor *x, const at::Tensor *weight, const at::Tensor *bias,
                       const at::Tensor *running_mean, const at::Tensor *running_var, double momentum, double eps,
                       int64_t kernel, int64_t stride, int64_t padding) noexcept {
    return guarded([&] {
        check(*x, kernel, stride, padding);
        for (const at::Tensor *numbers : {weight, bias, running_mean, running_var}) {
            TORCH_CHECK(numbers->scalar_type() == at::toOpMathType(x->scalar_type()) && numbers->is_contiguous()
                            && numbers->numel() == x->size(1),
                        "a BatchNorm of other channels");
        }
        *out = new at::Tensor(
            NormPool::apply(*x, *weight, *bias, *running_mean, *running_var, momentum, eps, kernel, stride, padding));
    });
}
}
