#include "long_backward.cuh"
#include "table.h"

CK_ATTENTION_KERNELS(long_backward, LongBackward, is_multiplied)

int ck_attention_long_backward(const ck_attention_args *args, void *stream) {
    if (const int status = ck::launch_delta(*args, stream)) return status;
    return ck::launch_attention(kernels, *args, stream, 2);  // for keys and for queries
}
