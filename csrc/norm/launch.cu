// Chooses a kernel of the family and its grid.
#include "layout.cuh"
#include "table.h"

namespace {

const ck::NormTable *table_of(int op) {
    switch (op) {
        case CK_LAYER_NORM: return &ck::layer_norm_table;
        case CK_ADD_LAYER_NORM: return &ck::add_layer_norm_table;
        case CK_LAYER_NORM_GELU: return &ck::layer_norm_gelu_table;
        case CK_GELU_LAYER_NORM: return &ck::gelu_layer_norm_table;
        default: return nullptr;
    }
}

// Whole 16-byte pieces in every row of every tensor
bool is_aligned(const ck_norm_args &a) {
    const int per_access = a.dtype == CK_F32 ? 4 : 8;
    if (a.width % per_access) return false;
    const void *const tensors[] = {a.x, a.residual, a.weight, a.bias, a.linear_bias, a.grad, a.grad_residual,
                                   a.y, a.new_residual, a.dx, a.dresidual, a.partials};
    for (const void *tensor : tensors)
        if (reinterpret_cast<uintptr_t>(tensor) % 16) return false;
    return true;
}

int choose(const ck_norm_args &a, const ck::NormKernel **chosen) {
    const ck::NormTable *table = table_of(a.op);
    if (!table || a.width < 1 || a.width > ck::kMaxWidth || a.rows < 1 || a.ctas < 1) return CK_BAD_SHAPE;
    const bool aligned = is_aligned(a);
    for (int i = 0; i < table->count; ++i) {
        const ck::NormKernel &kernel = table->kernels[i];
        if (kernel.dtype != a.dtype || kernel.residual_dtype != a.residual_dtype) continue;
        if (kernel.capacity == ck::width_any || (aligned && a.width <= kernel.capacity)) {
            *chosen = &kernel;
            return 0;
        }
    }
    return CK_BAD_DTYPE;
}

}  // namespace

int ck_norm_forward(const ck_norm_args *args, void *stream) {
    const ck::NormKernel *kernel = nullptr;
    if (const int status = choose(*args, &kernel)) return status;
    const int64_t wanted = ck::divide_up(args->rows, kernel->forward_rows);
    const dim3 grid(static_cast<unsigned>(wanted < args->ctas ? wanted : args->ctas));
    return ck::launch(kernel->forward, grid, dim3(kernel->forward_threads), *args, stream);
}

// The grid is `ctas` exactly: the caller has made room for as many partial rows.
int ck_norm_backward(const ck_norm_args *args, void *stream) {
    const ck::NormKernel *kernel = nullptr;
    if (const int status = choose(*args, &kernel)) return status;
    return ck::launch(kernel->backward, dim3(args->ctas), dim3(kernel->backward_threads), *args, stream);
}
