// Launching through one door, so that a test can put a simulator behind it.
#pragma once

#include <cuda_runtime.h>

#include "../api.h"

namespace ck {

struct Kernel {
    const char *symbol;
    const void *function;
};

extern ck_hook launch_hook;

template <typename Args>
int launch(Kernel kernel, dim3 grid, dim3 block, const Args &args, void *stream) {
    if (launch_hook) {
        const ck_launch what = {kernel.symbol, {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, 0, sizeof(Args),
                                &args};
        launch_hook(&what);
        return 0;
    }
    void *parameters[] = {const_cast<Args *>(&args)};
    return cudaLaunchKernel(kernel.function, grid, block, parameters, 0, static_cast<cudaStream_t>(stream));
}

inline int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

}  // namespace ck
