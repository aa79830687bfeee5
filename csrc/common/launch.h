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
int launch(Kernel kernel, dim3 grid, dim3 block, const Args &args, void *stream, uint32_t shared_bytes = 0) {
    if (launch_hook) {
        const ck_launch what = {kernel.symbol, {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared_bytes,
                                sizeof(Args), &args};
        launch_hook(&what);
        return 0;
    }
    if (shared_bytes > 48 << 10) {  // the default; asked for at each launch, since the present device may have changed
        const cudaError_t status =
            cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
        if (status) return status;
    }
    void *parameters[] = {const_cast<Args *>(&args)};
    return cudaLaunchKernel(kernel.function, grid, block, parameters, shared_bytes, static_cast<cudaStream_t>(stream));
}

inline int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

}  // namespace ck
