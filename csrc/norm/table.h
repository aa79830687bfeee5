// Every kernel of the family by what it serves.
#pragma once

#include "../common/launch.h"

namespace ck {

struct NormKernel {
    int dtype, residual_dtype, capacity;  // capacity: longest row, 0 for the kernel that serves any
    Kernel forward, backward;
    int forward_threads, forward_rows, backward_threads;  // of a CTA; rows at a time
};

struct NormTable {
    const NormKernel *kernels;
    int count;
};

extern const NormTable layer_norm_table, add_layer_norm_table, layer_norm_gelu_table, gelu_layer_norm_table;

}  // namespace ck
