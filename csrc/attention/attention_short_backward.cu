#include "short_backward.cuh"
#include "table.h"

CK_ATTENTION_KERNELS(short_backward, ShortBackward, is_served)

int ck_attention_short_backward(const ck_attention_args *args, void *stream) {
    return ck::launch_attention(kernels, *args, stream, 1, 1);  // one CTA a head for what is outside sequences
}
