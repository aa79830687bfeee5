#include "short_forward.cuh"
#include "table.h"

CK_ATTENTION_KERNELS(short_forward, ShortForward, is_served)

int ck_attention_short_forward(const ck_attention_args *args, void *stream) {
    // one CTA a head for what is outside sequences
    return ck::launch_attention(kernels, *args, stream, 1, 1, 32 * args->warps);
}
