// The kernels of one direction of attention, by dtype and head dim.
#pragma once

#include "../common/launch.h"

#define CK_ATTENTION_ENTRY(SYMBOL, DTYPE, D, BYTES) {DTYPE, D, BYTES, {#SYMBOL, reinterpret_cast<const void *>(SYMBOL)}}

namespace ck {

struct AttentionKernel {
    int dtype, head_dim;
    uint32_t shared_bytes;
    Kernel kernel;
};

// `parts` CTAs a head.
template <int N>
int launch_attention(const AttentionKernel (&kernels)[N], const ck_attention_args &a, int64_t parts, int threads,
                     void *stream) {
    // sequences are counted in 32 bits, and so are CTAs
    if (a.tokens < 1 || a.tokens > 0x7fffff00 || a.sequences < 0 || a.heads < 1 || parts * a.heads > 0x7fffffff)
        return CK_BAD_SHAPE;
    if (threads < 32 || threads > 256) return CK_BAD_SHAPE;
    for (const AttentionKernel &k : kernels)
        if (k.dtype == a.dtype && k.head_dim == a.head_dim)
            return launch(k.kernel, static_cast<unsigned>(parts * a.heads), threads, a, stream, k.shared_bytes);
    return CK_BAD_DTYPE;
}

}  // namespace ck
