#include "long_forward.cuh"
#include "table.h"

CK_ATTENTION_KERNELS(long_forward, LongForward, is_multiplied)

int ck_attention_long_forward(const ck_attention_args *args, void *stream) {
    return ck::launch_attention(kernels, *args, stream);
}
