// Convolutions of oneDNN with what follows them in one pass over memory. libtorch registers them with its dispatcher for
// its compiler, but has no function for them, so that neither its C++ interface nor tch reaches them otherwise.
//
// Tensors are at::Tensor pointers, as tch has them. Each function gives a message to be freed with free(), or null when
// all went well.

#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <ATen/core/stack.h>
#include <c10/core/InferenceMode.h>

#include "guarded.h"

namespace {

std::optional<c10::OperatorHandle> find(const char *name, const char *overload) {
    return c10::Dispatcher::singleton().findSchema({name, overload});
}

const std::optional<c10::OperatorHandle> &plain() {
    static const auto op = find("mkldnn::_convolution_pointwise", "");
    return op;
}

const std::optional<c10::OperatorHandle> &adding() {
    static const auto op = find("mkldnn::_convolution_pointwise_", "binary");
    return op;
}

const std::optional<c10::OperatorHandle> &packing() {
    static const auto op = find("mkldnn::_reorder_convolution_weight", "");
    return op;
}

std::vector<int64_t> both(int64_t value) {
    return {value, value};
}

at::Tensor run(const c10::OperatorHandle &op, torch::jit::Stack &stack) {
    op.callBoxed(&stack);
    return std::move(stack.back()).toTensor();
}

} // namespace

extern "C" {

// Whether this libtorch has the operators.
int anneal_fused_available() noexcept {
    try {
        return plain() && adding() && packing();
    } catch (...) {
        return 0;
    }
}

// A weight in the order that oneDNN computes with.
char *anneal_fused_pack(at::Tensor **out, const at::Tensor *weight, int64_t stride, int64_t padding) noexcept {
    return guarded([&] {
        at::NoGradGuard frozen;
        torch::jit::Stack stack;
        torch::jit::push(stack, *weight, both(padding), both(stride), both(1), int64_t{1}, c10::IValue());
        *out = new at::Tensor(run(*packing(), stack));
    });
}

// conv2d with a bias; then, with `add`, the sum with it, which is written into its memory; then, with `relu`, relu.
char *anneal_fused_convolution(at::Tensor **out, const at::Tensor *x, const at::Tensor *weight, const at::Tensor *bias,
                               int64_t stride, int64_t padding, const at::Tensor *add, int relu) noexcept {
    return guarded([&] {
        at::NoGradGuard frozen;
        const c10::List<std::optional<at::Scalar>> none;
        torch::jit::Stack stack;
        if (add) {
            const c10::IValue activation = relu ? c10::IValue("relu") : c10::IValue();
            torch::jit::push(stack, *add, *x, *weight, *bias, both(padding), both(stride), both(1), int64_t{1}, "add",
                             at::Scalar(1.0), activation, none, c10::IValue());
            *out = new at::Tensor(run(*adding(), stack));
        } else {
            torch::jit::push(stack, *x, *weight, *bias, both(padding), both(stride), both(1), int64_t{1},
                             relu ? "relu" : "none", none, c10::IValue());
            *out = new at::Tensor(run(*plain(), stack));
        }
    });
}
}
