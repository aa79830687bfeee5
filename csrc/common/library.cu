// What is not about any one kernel: the ABI's number, errors, the launch hook.
#include "launch.h"

#ifndef CK_ARCHITECTURES
#error "the build passes -DCK_ARCHITECTURES"
#endif

namespace ck {
ck_hook launch_hook = nullptr;
}

int ck_abi(void) { return CK_ABI; }

const char *ck_architectures(void) { return CK_ARCHITECTURES; }

const char *ck_error_string(int status) {
    switch (status) {
        case CK_BAD_DTYPE: return "a dtype that this kernel does not serve";
        case CK_BAD_SHAPE: return "a shape that this kernel does not serve";
        default: return cudaGetErrorString(static_cast<cudaError_t>(status));
    }
}

int ck_driver_version(void) {
    int version = 0;
    return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

void ck_set_launch_hook(ck_hook hook) { ck::launch_hook = hook; }
